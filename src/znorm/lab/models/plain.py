"""A deep net without shortcuts and without normalization, where gradients do vanish."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["PlainNet"]


class PlainNet(nn.Module):
    """A CIFAR ResNet of ``depth = 6 n + 2`` layers, less its shortcuts and its batch norms.

    Parameters
    ----------
    depth : int
        20, 32, 44, 56, 110, ...
    channels : int
        Of the image.
    classes : int
    init : "glorot" or "he"
        How weights start.

    Notes
    -----
    Maps images ``(N, channels, H, W)`` to logits ``(N, classes)``. Convolutions have a bias, since
    no normalization follows them.

    "glorot" is for symmetric units and loses half of the gradient's variance in every ReLU layer:
    He, Zhang, Ren and Sun ("Delving Deep into Rectifiers", ICCV 2015, section 2.2) show that a net
    of 30 layers then does not start to learn. At 56 layers, the first layer's gradient is about
    1e-9 of the last one's. "he", which that paper gives as the cure, keeps the two within a factor
    of ten: the control in which gradients do not vanish.

    Biases start from torch's own small random numbers. From zero, the signal would die out on its
    way forward as the gradient does on its way back, and the gradients of all layers would be
    equally small.
    """

    def __init__(self, depth: int, channels: int, classes: int, *, init: str) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = channels
        # Two convolutions in each of a ResNet's blocks, after its first convolution.
        pairs = 2 * ((depth - 2) // 6)
        for outputs, stride, count in ((16, 1, pairs + 1), (32, 2, pairs), (64, 2, pairs)):
            for index in range(count):
                step = stride if index == 0 else 1
                layers += [nn.Conv2d(width, outputs, 3, step, padding=1), nn.ReLU()]
                width = outputs
        self.layers = nn.Sequential(*layers)
        self.fc = nn.Linear(width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                if init == "he":
                    nn.init.kaiming_normal_(module.weight)
                else:
                    nn.init.xavier_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(torch.mean(self.layers(x), dim=(2, 3)))
        return logits
