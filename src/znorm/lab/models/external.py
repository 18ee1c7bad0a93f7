"""Models of other libraries and of the user's own: ``timm:NAME``, ``torchvision:NAME``,
``smp:ARCH/ENCODER``, ``package.module:function``.

Each is built from what its library documents, then tried on one batch of zeros, so that a net that
does not fit the data is refused before anything is trained.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from znorm.lab.errors import ConfigurationError
from znorm.lab.models.libraries import cause, load
from znorm.lab.registry import unknown

__all__ = ["build", "check", "is_external", "library_of", "options_of", "output_of"]

FORMS = "timm:NAME, torchvision:NAME, smp:ARCH/ENCODER or package.module:function"

# What the lab itself passes to each library; not for the user to set.
RESERVED = {
    "timm": ("num_classes", "in_chans"),
    "torchvision": ("num_classes", "weights", "pretrained", "image_size"),
    "smp": ("encoder_name", "encoder_weights", "in_channels", "classes"),
}


def is_external(name: object) -> bool:
    """Tell whether a name is of one of the forms above.

    Parameters
    ----------
    name : object

    Examples
    --------
    >>> is_external("timm:resnet18"), is_external("resnet20")
    (True, False)
    """
    return isinstance(name, str) and ":" in name


def output_of(name: str) -> Literal["classes", "mask"] | None:
    """The output of a model; None where only trying it can tell.

    Examples
    --------
    >>> output_of("smp:Unet/resnet34")
    'mask'
    """
    library = name.partition(":")[0]
    if library == "smp":
        return "mask"
    return "classes" if library in RESERVED else None


def library_of(name: str) -> str | None:
    """The library that a model is of; None for a function of the user's own.

    Examples
    --------
    >>> library_of("timm:resnet18"), library_of("nets:make")
    ('timm', None)
    """
    library = name.partition(":")[0]
    return library if library in RESERVED else None


def options_of(name: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The options with their defaults filled in.

    Parameters
    ----------
    name : str
    chosen : mapping
        Passed on to the library or function. timm and smp also take ``pretrained``, false by
        default.

    Raises
    ------
    ConfigurationError
        For an option that the lab sets itself, or a ``pretrained`` that is not true or false.

    Examples
    --------
    >>> options_of("timm:resnet18", {"drop_rate": 0.1})
    {'pretrained': False, 'drop_rate': 0.1}
    """
    library = name.partition(":")[0]
    for key in RESERVED.get(library, ()):
        if key in chosen:
            why = (
                "weights are not pretrained, --start FILE takes them"
                if key in ("weights", "pretrained")
                else "the lab sets it"
            )
            raise ConfigurationError(f"model {name} takes no option {key!r}: {why}; leave it out")
    for key in ("name", "channels", "classes", "image_size"):
        if key in chosen:
            raise ConfigurationError(
                f"model {name} takes no option {key!r}: the lab sets it; leave it out"
            )
    options = dict(chosen)
    if library in ("timm", "smp"):
        options = {"pretrained": False, **options}
        if not isinstance(options["pretrained"], bool):
            raise ConfigurationError(
                f"model {name}: pretrained must be true or false, found {options['pretrained']!r}"
            )
    return options


def check(
    name: str,
    *,
    channels: int,
    classes: int,
    size: tuple[int, int],
    options: Mapping[str, Any],
) -> None:
    """Raise what :func:`build` would raise before it builds; imports the library.

    Raises
    ------
    ConfigurationError
        For a name, option or library that is not there.
    """
    _maker(name, channels, classes, size, options)


def build(
    name: str,
    *,
    channels: int,
    classes: int,
    size: tuple[int, int],
    options: Mapping[str, Any],
) -> nn.Module:
    """Build a model and try it on a batch of two images of zeros.

    The trial leaves torch's random numbers, and the model's modes and running statistics, as they
    were.

    Raises
    ------
    ConfigurationError
        For a name, option or library that is not there, and for a model that cannot be built,
        fails on the batch or gives a wrong shape.
    """
    make = _maker(name, channels, classes, size, options)
    try:
        model = make()
    except (Exception, SystemExit) as error:
        hint = ""
        if options.get("pretrained") is True and library_of(name) is not None:
            hint = "; pretrained weights are fetched: where that fails give a file, --start FILE"
        raise ConfigurationError(f"model {name} cannot be built: {cause(error)}{hint}") from error
    if not isinstance(model, nn.Module):
        raise ConfigurationError(
            f"model {name} gave a {type(model).__name__}, expected a torch.nn.Module"
        )
    # Inception and GoogLeNet, while they train alone: the trial below is in evaluation mode.
    if getattr(model, "aux_logits", False):
        raise ConfigurationError(
            f"model {name} gives several outputs in training; set its option aux_logits to false"
        )
    _try(name, model, channels, classes, size)
    return model


def _maker(
    name: str, channels: int, classes: int, size: tuple[int, int], chosen: Mapping[str, Any]
) -> Callable[[], object]:
    """The function that builds the model, once its library is imported and its name is known."""
    options = options_of(name, chosen)
    library, _, rest = name.partition(":")
    if not library or not rest:
        raise ConfigurationError(f"unknown model {name!r}; valid forms: {FORMS}")
    if library == "timm":
        return _timm(name, rest, channels, classes, options)
    if library == "torchvision":
        return _torchvision(name, rest, channels, classes, size, options)
    if library == "smp":
        return _smp(name, rest, channels, classes, options)
    image_size = size[0] if size[0] == size[1] else size
    function = _function(name, library, rest)
    return partial(function, channels=channels, classes=classes, image_size=image_size, **options)


def _timm(
    name: str, rest: str, channels: int, classes: int, options: dict[str, Any]
) -> Callable[[], object]:
    timm = load("timm", model=name, install="timm")
    # Knows a name with the tag of its weights, as resnet50.a1_in1k, too.
    if not timm.is_model(rest):
        raise unknown("timm model", rest, timm.list_models())
    return partial(timm.create_model, rest, num_classes=classes, in_chans=channels, **options)


def _torchvision(
    name: str,
    rest: str,
    channels: int,
    classes: int,
    size: tuple[int, int],
    options: dict[str, Any],
) -> Callable[[], object]:
    models = load("torchvision.models", model=name, install="torchvision")
    # Of its classifiers alone: its other models fetch a pretrained part without being asked.
    known = models.list_models(module=models)
    if rest not in known:
        raise unknown("torchvision classifier", rest, known)
    if channels != 3:
        raise ConfigurationError(
            f"model {name} takes images of 3 channels, found {channels}; those of timm take others"
        )
    if rest.startswith("vit_"):
        if size[0] != size[1]:
            raise ConfigurationError(
                f"model {name} takes square images, found {size[0]}x{size[1]}; crop or pad them"
            )
        options = {**options, "image_size": size[0]}
    return partial(models.get_model, rest, weights=None, num_classes=classes, **options)


def _smp(
    name: str, rest: str, channels: int, classes: int, options: dict[str, Any]
) -> Callable[[], object]:
    architecture, _, encoder = rest.partition("/")
    if not architecture or not encoder:
        raise ConfigurationError(
            f"model {name!r} is not of the form smp:ARCH/ENCODER, as smp:Unet/resnet34"
        )
    smp = load("segmentation_models_pytorch", model=name, install="segmentation-models-pytorch")
    architectures = [
        key
        for key, value in vars(smp).items()
        if isinstance(value, type) and issubclass(value, nn.Module)
    ]
    if architecture.lower() not in map(str.lower, architectures):
        raise unknown("smp architecture", architecture, architectures)
    encoders = smp.encoders.get_encoder_names()
    # A tu- encoder is any of timm's, which smp does not list.
    if encoder not in encoders and not encoder.startswith("tu-"):
        raise unknown("smp encoder", encoder, encoders)
    pretrained = options.pop("pretrained")
    return partial(
        smp.create_model,
        architecture,
        encoder_name=encoder,
        encoder_weights="imagenet" if pretrained else None,
        in_channels=channels,
        classes=classes,
        **options,
    )


def _function(name: str, path: str, attribute: str) -> Callable[..., object]:
    folder = os.getcwd()
    # A file beside the user's notes should do; the znorm command does not look there by itself.
    # Last on the path, so that it hides nothing.
    if folder not in sys.path and "" not in sys.path:
        sys.path.append(folder)
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{path}.".startswith(f"{error.name}."):
            raise ConfigurationError(
                f"model {name}: there is no module {error.name!r} on Python's path or in {folder}; "
                f"valid forms: {FORMS}"
            ) from None
        raise ConfigurationError(
            f"model {name}: {path} cannot be imported: {cause(error)}"
        ) from error
    except (Exception, SystemExit) as error:
        raise ConfigurationError(
            f"model {name}: {path} cannot be imported: {cause(error)}"
        ) from error
    public = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
    function = getattr(module, attribute, None)
    if function is None:
        raise unknown(f"function of {path}", attribute, public)
    if not callable(function):
        raise ConfigurationError(
            f"model {name}: {attribute} is a {type(function).__name__}, expected a function"
        )
    return function  # type: ignore[no-any-return]


def _try(name: str, model: nn.Module, channels: int, classes: int, size: tuple[int, int]) -> None:
    batch = (2, channels, *size)
    shapes = {"classes": (2, classes), "mask": (2, classes, *size)}
    modes = [(module, module.training) for module in model.modules()]
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            output = model(torch.zeros(batch, device=device))
    except (Exception, SystemExit) as error:
        raise ConfigurationError(
            f"model {name} fails on a batch of shape {batch}: {cause(error)}"
        ) from error
    finally:
        for module, mode in modes:
            module.training = mode
    kind = output_of(name)
    valid = list(shapes.values()) if kind is None else [shapes[kind]]
    expected = " or ".join(map(str, valid))
    if not isinstance(output, Tensor):
        raise ConfigurationError(
            f"model {name} gives a {type(output).__name__} for a batch of shape {batch}, "
            f"expected a tensor of shape {expected}"
        )
    if tuple(output.shape) not in valid:
        raise ConfigurationError(
            f"model {name} gives shape {tuple(output.shape)} for a batch of shape {batch}, "
            f"expected {expected}"
        )
