"""DenseNets of growth rate 32.

Huang, Liu, van der Maaten and Weinberger, "Densely Connected Convolutional Networks", CVPR 2017,
table 1.
"""

from __future__ import annotations

from torch import nn

from znorm.lab.models.libraries import load

__all__ = ["densenet"]


def densenet(depth: int, channels: int, classes: int, *, stem: str) -> nn.Module:
    """DenseNet-121 or -169, from MONAI.

    Parameters
    ----------
    depth : 121 or 169
    channels : int
        Of the image.
    classes : int
    stem : "imagenet" or "cifar"
        A 7x7 convolution of stride 2 and max pooling; or a 3x3 convolution of stride 1 alone, so
        that the first block sees every pixel.

    Returns
    -------
    nn.Module
        Maps images ``(N, channels, H, W)`` to logits ``(N, classes)``. 7,978,856 and 14,149,480
        parameters at 3 channels, 1,000 classes and the ImageNet stem, as published.

    Raises
    ------
    ConfigurationError
        If MONAI is missing.

    Notes
    -----
    MONAI's initialization (He's, normal, by fan-in; the classifier's bias zero) and its lack of
    dropout are those of torchvision and need no correction.
    """
    nets = load("monai.networks.nets", model=f"densenet{depth}", install="monai")
    make = {121: nets.DenseNet121, 169: nets.DenseNet169}[depth]
    net: nn.Module = make(spatial_dims=2, in_channels=channels, out_channels=classes)
    if stem == "cifar":
        # MONAI has no argument for it.
        features = net.features
        assert isinstance(features, nn.Sequential)
        features.conv0 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(features.conv0.weight)
        features.pool0 = nn.Identity()
    return net
