"""Models by name; one file a family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from znorm.lab.errors import ConfigurationError
from znorm.lab.models import external
from znorm.lab.models.densenet import densenet
from znorm.lab.models.external import is_external
from znorm.lab.models.mobilenet import MobileNetV2
from znorm.lab.models.plain import PlainNet
from znorm.lab.models.resnet import CifarResNet, bottleneck_resnet
from znorm.lab.models.unet import UNetPlusPlus, attention_unet, resnet50_unet
from znorm.lab.registry import lookup, unknown

__all__ = [
    "MODELS",
    "Family",
    "Option",
    "build",
    "check",
    "is_external",
    "options_of",
    "output_of",
]


@dataclass(frozen=True)
class Option:
    """A choice that a model offers.

    Parameters
    ----------
    about : str
        One line.
    values : tuple of str
        The first is the default.
    smallest : mapping
        The least image size of the values that have one of their own.
    """

    about: str
    values: tuple[str, ...]
    smallest: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """One model by name, and how it is made.

    Parameters
    ----------
    about : str
        One line, with the number of parameters.
    make : callable (channels, classes, \\**options) -> nn.Module
    smallest : int
        The least image side that it takes with its default options.
    multiple : int
        Image sides must be multiples of it.
    output : "classes" or "mask"
        Logits ``(N, classes)``, or ``(N, classes, H, W)``.
    options : mapping
        The choices that it offers, by name.
    depthwise : bool
        Whether its convolutions go channel by channel, which a CPU does faster in float32.
    """

    about: str
    make: Callable[..., nn.Module]
    smallest: int
    multiple: int = 1
    output: Literal["classes", "mask"] = "classes"
    options: Mapping[str, Option] = field(default_factory=dict)
    depthwise: bool = False


def _stem(cifar: int) -> Mapping[str, Option]:
    about = "imagenet: a stem that shrinks 224x224 images; cifar: one that keeps the resolution"
    return {"stem": Option(about, ("imagenet", "cifar"), {"cifar": cifar})}


# The least sizes are those at which every layer that shrinks its input has something to shrink.
MODELS: Mapping[str, Family] = {
    "resnet20": Family(
        "CIFAR ResNet, 20 layers, 0.27 M parameters", lambda c, k: CifarResNet(20, c, k), 4
    ),
    "resnet56": Family(
        "CIFAR ResNet, 56 layers, 0.85 M parameters", lambda c, k: CifarResNet(56, c, k), 4
    ),
    "resnet101": Family(
        "ResNet, 101 layers, 44.5 M parameters at 1,000 classes",
        lambda c, k, stem: bottleneck_resnet(101, c, k, stem=stem),
        17,
        options=_stem(cifar=5),
    ),
    "resnet152": Family(
        "ResNet, 152 layers, 60.2 M parameters at 1,000 classes",
        lambda c, k, stem: bottleneck_resnet(152, c, k, stem=stem),
        17,
        options=_stem(cifar=5),
    ),
    "densenet121": Family(
        "DenseNet, 121 layers, 8.0 M parameters at 1,000 classes",
        lambda c, k, stem: densenet(121, c, k, stem=stem),
        29,
        options=_stem(cifar=8),
    ),
    "densenet169": Family(
        "DenseNet, 169 layers, 14.1 M parameters at 1,000 classes",
        lambda c, k, stem: densenet(169, c, k, stem=stem),
        29,
        options=_stem(cifar=8),
    ),
    "mobilenetv2": Family(
        "MobileNetV2, 3.5 M parameters at 1,000 classes",
        MobileNetV2,
        17,
        options=_stem(cifar=5),
        depthwise=True,
    ),
    "plain56": Family(
        "ResNet-56 without shortcuts and normalization: gradients vanish; 0.85 M parameters",
        lambda c, k, init: PlainNet(56, c, k, init=init),
        4,
        options={
            "init": Option(
                "glorot: gradients vanish; he: they hardly do, for comparison", ("glorot", "he")
            )
        },
    ),
    "resnet50_unet": Family(
        "U-Net on a ResNet-50 that is not pretrained, 32.5 M parameters",
        resnet50_unet,
        32,
        multiple=32,
        output="mask",
    ),
    "unetplusplus": Family(
        "UNet++, 32 to 512 channels, 9.0 M parameters", UNetPlusPlus, 16, 16, "mask"
    ),
    "attention_unet": Family(
        "Attention U-Net, 32 to 512 channels, 7.9 M parameters", attention_unet, 16, 16, "mask"
    ),
}


def build(
    name: str, *, channels: int, classes: int, image_size: int | tuple[int, int], **options: Any
) -> nn.Module:
    """A freshly initialized model; seed torch before for the same weights.

    Parameters
    ----------
    name : str
        Of ``MODELS``; or ``timm:NAME``, ``torchvision:NAME``, ``smp:ARCH/ENCODER`` or
        ``package.module:function``, which is called as ``function(channels=..., classes=...,
        image_size=..., **options)`` with one number for square images and (height, width) for
        others.
    channels : int
        Of the images.
    classes : int
        Of the labels; 1 for a mask of yes and no.
    image_size : int or (height, width)
        In pixels.
    **options
        The family's own, as ``stem="cifar"``; see :func:`options_of`.

    Returns
    -------
    nn.Module
        Maps images ``(N, channels, H, W)`` to logits, ``(N, classes)`` or ``(N, classes, H, W)``.

    Raises
    ------
    ConfigurationError
        For an unknown name, option or value, a library that is missing, or an image size that the
        model does not take. Models of other libraries are tried on one batch.

    Examples
    --------
    >>> from znorm.lab import models
    >>> net = models.build("resnet20", channels=3, classes=10, image_size=32)
    >>> sum(p.numel() for p in net.parameters())
    269722
    """
    shape = {"channels": channels, "classes": classes, "image_size": image_size}
    if external.is_external(name):
        size = _sizes(name, **shape)
        return external.build(name, channels=channels, classes=classes, size=size, options=options)
    complete = _checked(name, options, **shape)
    return MODELS[name].make(channels, classes, **complete)


def check(
    name: str, *, channels: int, classes: int, image_size: int | tuple[int, int], **options: Any
) -> None:
    """Raise what :func:`build` would, without building; parameters as there.

    A model of ``MODELS`` imports nothing for it. One of another library imports that library,
    but is not tried on a batch.

    Parameters
    ----------
    name, channels, classes, image_size, **options
        As of :func:`build`.

    Raises
    ------
    ConfigurationError
        As :func:`build`.

    Examples
    --------
    >>> from znorm.lab import models
    >>> models.check("resnet20", channels=3, classes=10, image_size=3)
    Traceback (most recent call last):
        ...
    znorm.lab.errors.ConfigurationError: model resnet20 takes images of 4 pixels or more, found 3
    """
    shape = {"channels": channels, "classes": classes, "image_size": image_size}
    if external.is_external(name):
        size = _sizes(name, **shape)
        external.check(name, channels=channels, classes=classes, size=size, options=options)
    else:
        _checked(name, options, **shape)


def options_of(name: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """A model's options, with defaults for those not chosen: what a specification stores.

    Parameters
    ----------
    name : str
        As in :func:`build`.
    chosen : mapping
        Options by name. For a model of ``MODELS``, None stands for the default.

    Raises
    ------
    ConfigurationError
        For an unknown model, option or value.

    Examples
    --------
    >>> from znorm.lab import models
    >>> models.options_of("densenet121", {})
    {'stem': 'imagenet'}
    """
    if external.is_external(name):
        return external.options_of(name, chosen)
    options = lookup("model", name, MODELS).options
    for key in chosen:
        if not options:
            raise ConfigurationError(f"model {name} takes no options, found {key!r}")
        if key not in options:
            raise unknown(f"option of model {name}", key, options)
    complete = {}
    for key, option in options.items():
        value = chosen.get(key)
        value = option.values[0] if value is None else value
        if value not in option.values:
            raise unknown(f"{key} of model {name}", value, option.values)
        complete[key] = value
    return complete


def output_of(name: str) -> Literal["classes", "mask"] | None:
    """The output of a model, classes or a mask; None for a function, which only trying can tell.

    Parameters
    ----------
    name : str
        As of :func:`build`.

    Raises
    ------
    ConfigurationError
        For an unknown model.

    Examples
    --------
    >>> from znorm.lab import models
    >>> models.output_of("attention_unet")
    'mask'
    """
    if external.is_external(name):
        return external.output_of(name)
    return lookup("model", name, MODELS).output


def _checked(
    name: str, options: Mapping[str, Any], channels: Any, classes: Any, image_size: Any
) -> dict[str, Any]:
    """The complete options of a model that takes such images."""
    complete = options_of(name, options)
    family = MODELS[name]
    height, width = _sizes(name, channels, classes, image_size)
    found = f"{height}" if isinstance(image_size, int) else f"{height}x{width}"
    smallest = family.smallest
    for key, option in family.options.items():
        smallest = option.smallest.get(complete[key], smallest)
    if min(height, width) < smallest:
        chosen = "".join(f" with {key} {value}" for key, value in complete.items())
        raise ConfigurationError(
            f"model {name}{chosen} takes images of {smallest} pixels or more, found {found}"
        )
    if height % family.multiple or width % family.multiple:
        fits = "x".join(
            str(-(-side // family.multiple) * family.multiple) for side in (height, width)
        )
        raise ConfigurationError(
            f"model {name} takes images whose sides are multiples of {family.multiple}, "
            f"found {height}x{width}; resize or pad them to {fits}"
        )
    return complete


def _sizes(name: str, channels: Any, classes: Any, image_size: Any) -> tuple[int, int]:
    """Height and width."""
    for argument, value in (("channels", channels), ("classes", classes)):
        if not isinstance(value, int) or value < 1:
            raise ConfigurationError(f"model {name}: {argument} must be 1 or more, found {value}")
    sides = image_size if isinstance(image_size, tuple | list) else (image_size, image_size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ConfigurationError(
            f"model {name}: image_size must be a number of pixels or (height, width), "
            f"found {image_size!r}"
        )
    return sides[0], sides[1]
