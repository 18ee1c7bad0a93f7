"""MobileNetV2.

Sandler, Howard, Zhu, Zhmoginov and Chen, "MobileNetV2: Inverted Residuals and Linear Bottlenecks",
CVPR 2018, table 2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["MobileNetV2"]

# Expansion, channels, blocks, stride of the first block: the rows of table 2.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """Expand by 1x1, filter each channel by 3x3, project by 1x1 without a ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        expand = [_unit(inputs, hidden, 1)] if expansion > 1 else []
        self.layers = nn.Sequential(
            *expand,
            _unit(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.shortcut else y


class MobileNetV2(nn.Module):
    """MobileNetV2 of width 1.

    Parameters
    ----------
    channels : int
        Of the image.
    classes : int
    stem : "imagenet" or "cifar"
        "cifar" keeps the resolution in the first convolution and in the first stage that would
        halve it, as is customary on 32x32 images: a factor of 8 in all instead of 32.

    Notes
    -----
    Maps images ``(N, channels, H, W)`` to logits ``(N, classes)``. 3,504,872 parameters at 3
    channels and 1,000 classes, as published. Initialization and the dropout of 0.2 before the
    classifier are those of torchvision.
    """

    def __init__(self, channels: int, classes: int, *, stem: str) -> None:
        super().__init__()
        self.stem = _unit(channels, 32, 3, 1 if stem == "cifar" else 2)
        blocks = []
        width = 32
        for row, (expansion, outputs, repeats, stride) in enumerate(STAGES):
            if stem == "cifar" and row == 1:
                stride = 1
            for block in range(repeats):
                step = stride if block == 0 else 1
                blocks.append(InvertedResidual(width, outputs, step, expansion))
                width = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = _unit(width, 1280, 1)
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(1280, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
        nn.init.normal_(self.fc.weight, 0, 0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.blocks(self.stem(x)))
        logits: Tensor = self.fc(self.dropout(torch.mean(x, dim=(2, 3))))
        return logits


def _unit(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """A convolution, its normalization, and a ReLU that stops at 6."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(inplace=True),
    )
