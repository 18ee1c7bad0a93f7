"""Models by name; one file a family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from znorm.lab.errors import ConfigurationError
from znorm.lab.models.resnet import CifarResNet
from znorm.lab.registry import lookup

__all__ = ["MODELS", "Family", "build"]


@dataclass(frozen=True)
class Family:
    """How to make one model.

    Parameters
    ----------
    about : str
        One line.
    make : callable (channels, classes) -> nn.Module
    smallest : int
        The least image size that it takes.
    """

    about: str
    make: Callable[[int, int], nn.Module]
    smallest: int


MODELS: Mapping[str, Family] = {
    "resnet20": Family(
        "CIFAR ResNet, 20 layers, 0.27 M parameters", lambda c, k: CifarResNet(20, c, k), 4
    ),
    "resnet56": Family(
        "CIFAR ResNet, 56 layers, 0.85 M parameters", lambda c, k: CifarResNet(56, c, k), 4
    ),
}


def build(name: str, *, channels: int, classes: int, image_size: int) -> nn.Module:
    """A freshly initialized model; seed torch before for the same weights.

    Parameters
    ----------
    name : str
        Of :data:`MODELS`.
    channels, classes : int
        Of the images, and of the labels.
    image_size : int
        Height and width of the images in pixels.

    Raises
    ------
    ConfigurationError
        For an unknown name, or an image that is too small for the model.

    Examples
    --------
    >>> from znorm.lab import models
    >>> net = models.build("resnet20", channels=3, classes=10, image_size=32)
    >>> sum(p.numel() for p in net.parameters())
    269722
    """
    family = lookup("model", name, MODELS)
    if image_size < family.smallest:
        raise ConfigurationError(
            f"model {name} takes images of {family.smallest} pixels or more, found {image_size}"
        )
    for argument, value in (("channels", channels), ("classes", classes)):
        if value < 1:
            raise ConfigurationError(f"model {name}: {argument} must be 1 or more, found {value}")
    return family.make(channels, classes)
