"""ResNets: those of the CIFAR family, and the wide ones made for ImageNet.

He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", CVPR 2016. Section 4.2 has
the CIFAR family (16, 32 and 64 channels, parameter-free shortcuts, option A), table 1 the others.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from znorm.lab.models.libraries import load

__all__ = ["CifarResNet", "bottleneck_resnet"]


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut that costs no parameter."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.padding = (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.stride > 1:
            # Option A: every other pixel, and zeros for the channels that are new.
            x = x[:, :, :: self.stride, :: self.stride]
            x = F.pad(x, (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(y + x)


class CifarResNet(nn.Module):
    """A ResNet of ``depth = 6 n + 2`` layers.

    Parameters
    ----------
    depth : int
        20, 32, 44, 56, 110, ...
    channels : int
        Of the image.
    classes : int

    Notes
    -----
    Maps images ``(N, channels, H, W)`` to logits ``(N, classes)``.
    """

    def __init__(self, depth: int, channels: int, classes: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.stage1 = _stage(blocks, 16, 16, 1)
        self.stage2 = _stage(blocks, 16, 32, 2)
        self.stage3 = _stage(blocks, 32, 64, 2)
        self.fc = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv(x)))
        x = self.stage3(self.stage2(self.stage1(x)))
        logits: Tensor = self.fc(torch.mean(x, dim=(2, 3)))
        return logits


def _stage(blocks: int, inputs: int, outputs: int, stride: int) -> nn.Sequential:
    first = Block(inputs, outputs, stride)
    return nn.Sequential(first, *(Block(outputs, outputs, 1) for _ in range(blocks - 1)))


def bottleneck_resnet(depth: int, channels: int, classes: int, *, stem: str) -> nn.Module:
    """ResNet-101 or -152, from MONAI.

    Parameters
    ----------
    depth : 101 or 152
    channels : int
        Of the image.
    classes : int
    stem : "imagenet" or "cifar"
        A 7x7 convolution of stride 2 and max pooling; or a 3x3 convolution of stride 1 alone, so
        that the first stage sees every pixel.

    Returns
    -------
    nn.Module
        Maps images ``(N, channels, H, W)`` to logits ``(N, classes)``. 44,549,160 and 60,192,808
        parameters at 3 channels, 1,000 classes and the ImageNet stem, as published.

    Raises
    ------
    ConfigurationError
        If MONAI is missing.

    Notes
    -----
    As in torchvision, a stage halves the resolution in the 3x3 convolution of its first block; He
    et al. halve it in the 1x1 convolution before. Convolutions start from He's normal distribution
    by fan-out, also as in torchvision; the classifier's bias starts from zero.
    """
    nets = load("monai.networks.nets", model=f"resnet{depth}", install="monai")
    make = {101: nets.resnet101, 152: nets.resnet152}[depth]
    # MONAI's own defaults are a stem of stride 1, and shortcuts with a bias ahead of their
    # normalization: neither is in the published net.
    size, stride = (7, 2) if stem == "imagenet" else (3, 1)
    net: nn.Module = make(
        spatial_dims=2,
        n_input_channels=channels,
        num_classes=classes,
        conv1_t_size=size,
        conv1_t_stride=stride,
        no_max_pool=stem == "cifar",
        bias_downsample=False,
    )
    return net
