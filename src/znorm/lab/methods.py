"""The methods that are compared: a method is a chain of transforms and a weight decay."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import znorm
from znorm.lab.errors import ConfigurationError
from znorm.lab.importing import import_users_module
from znorm.lab.registry import lookup, unknown
from znorm.transforms import TRANSFORMS, Transform

__all__ = ["METHODS", "PUBLISHED", "Method", "external", "label", "make_transform", "resolve"]

# Transforms as they are written in YAML and kept in a specification: {"ZNorm": {"eps": 1e-8}}. A
# name is one of the library's table, or the place of a class: "package.module:Class".
Written = tuple[dict[str, dict[str, Any]], ...]


@dataclass(frozen=True)
class Method:
    """One row of a table.

    Parameters
    ----------
    label : str
        As tables show it.
    about : str
        One line.
    transform : tuple of dict
        A chain, of each transform its name and its arguments.
    weight_decay : float
        Decoupled under Adam and AdamW.
    """

    label: str
    about: str
    transform: Written = field(default=())
    weight_decay: float = 0.0


METHODS: Mapping[str, Method] = {
    "baseline": Method("Baseline", "the plain optimizer"),
    "gradient_centralization": Method(
        "Gradient centralization",
        "subtract the mean of each output channel (Yong et al. 2020)",
        ({"Centralize": {}},),
    ),
    "gradient_clipping": Method(
        "Gradient clipping",
        "scale to a global norm of at most 0.1",
        ({"ClipGlobalNorm": {"threshold": 0.1}},),
    ),
    "weight_decay_1e-3": Method(
        "Weight decay 1e-3", "weight decay, under Adam decoupled (AdamW)", weight_decay=1e-3
    ),
    "weight_decay_1e-4": Method(
        "Weight decay 1e-4", "weight decay, under Adam decoupled (AdamW)", weight_decay=1e-4
    ),
    "znorm": Method("ZNorm", "the z-score of each layer's gradient", ({"ZNorm": {}},)),
    "znorm_all": Method(
        "ZNorm, all tensors",
        "the z-score of every gradient, biases and normalizations too",
        ({"ZNorm": {"select": "all"}},),
    ),
    "center_only": Method(
        "Centre only",
        "subtract each layer's mean: half of the z-score",
        ({"ZNorm": {"scale": False}},),
    ),
    "scale_only": Method(
        "Scale only",
        "divide by each layer's standard deviation: half of the z-score",
        ({"ZNorm": {"center": False}},),
    ),
    "unit_norm": Method(
        "Unit norm", "divide each layer's gradient by its norm", ({"UnitNorm": {}},)
    ),
    "clip_value": Method(
        "Clipping by value", "clamp each entry to 0.1", ({"ClipValue": {"threshold": 0.1}},)
    ),
    "clip_tensor_norm": Method(
        "Clipping by tensor",
        "scale each tensor to a norm of 0.1",
        ({"ClipNorm": {"threshold": 0.1}},),
    ),
    "adaptive_clipping": Method(
        "Adaptive clipping",
        "scale each output channel to 0.01 of its weights' norm (Brock et al. 2021)",
        ({"AdaptiveClip": {"threshold": 0.01}},),
    ),
}

# The rows of the paper's tables, and what is compared where nothing else is asked for.
PUBLISHED = tuple(METHODS)[:6]


def label(name: str) -> str:
    """The label of a method in tables; one that the user wrote goes by its name."""
    return METHODS[name].label if name in METHODS else name


def external(transform: Any) -> list[str]:
    """The names in a transform, as it is written, that are places of code outside of this package.

    >>> external([{"ZNorm": {}}, {"clips:Mine": {"threshold": 0.1}}])
    ['clips:Mine']
    """
    several = isinstance(transform, Sequence) and not isinstance(transform, str)
    names = []
    for item in transform if several else [transform]:
        names += (
            [item] if isinstance(item, str) else list(item if isinstance(item, Mapping) else [])
        )
    return [name for name in names if isinstance(name, str) and ":" in name]


def resolve(name: str, transform: Any, weight_decay: float | None) -> tuple[Written, float]:
    """The transforms and the weight decay of a method, by its name or as the user wrote them.

    Code outside of this package is not imported.

    Raises
    ------
    ConfigurationError
        For a name that is not known and comes without transforms, for a known one with others, for
        what is not a transform or has wrong arguments.
    """
    known = METHODS.get(name)
    if known is None and transform is None and weight_decay is None:
        raise unknown("method", name, METHODS)
    written = (known.transform if known else ()) if transform is None else _written(transform)
    if weight_decay is not None and (
        isinstance(weight_decay, bool) or not isinstance(weight_decay, int | float)
    ):
        raise ConfigurationError(
            f"method {name}: weight_decay must be a number, found {weight_decay!r}"
        )
    decay = (known.weight_decay if known else 0.0) if weight_decay is None else weight_decay
    if known is not None and (written != known.transform or decay != known.weight_decay):
        raise ConfigurationError(
            f"method {name}: its transform and weight decay are fixed; give yours another name"
        )
    make_transform(tuple(one for one in written if not external(one)))
    return written, decay


def _written(transform: Any) -> Written:
    """Transforms as a specification has them: of "ZNorm", {"ZNorm": {...}} or a list of these."""
    several = isinstance(transform, Sequence) and not isinstance(transform, str)
    written: list[dict[str, dict[str, Any]]] = []
    for item in transform if several else [transform]:
        one = {item: {}} if isinstance(item, str) else item
        if not isinstance(one, Mapping) or len(one) != 1:
            raise ConfigurationError(
                f"transform: expected a transform's name and its arguments, found {item!r}"
            )
        ((name, arguments),) = one.items()
        if not (isinstance(name, str) and ":" in name):
            _check_known(name)
        if arguments is not None and not isinstance(arguments, Mapping):
            raise ConfigurationError(
                f"transform {name}: expected arguments by name, found {arguments!r}"
            )
        plain = {str(key): _plain(name, key, value) for key, value in (arguments or {}).items()}
        written.append({str(name): plain})
    return tuple(written)


def _plain(name: object, argument: object, value: Any) -> Any:
    """The value as a specification holds it, which is a JSON file: numbers, text and lists."""
    try:
        value = value.item() if isinstance(value, np.generic) else value
        json.dumps(value)
    except (TypeError, ValueError):
        raise ConfigurationError(
            f"transform {name}: {argument}: a specification holds numbers, text and lists of them, "
            f"found {value!r}; write a class of your own and name its place, package.module:Class"
        ) from None
    return value


def _check_known(name: object) -> None:
    try:
        lookup("transform", name, TRANSFORMS)
    except ConfigurationError as error:
        raise ConfigurationError(
            f"{error}; one of your own goes by its place, package.module:Class"
        ) from None


def make_transform(written: Written) -> Transform | None:
    """The transform that is written down; None if there is none.

    Code that it names is imported: see :mod:`znorm.lab.trust`.

    Raises
    ------
    ConfigurationError
        Naming the transform and the argument.
    """
    made = []
    for one in written:
        ((name, arguments),) = one.items()
        kind = _imported(name) if ":" in name else lookup("transform", name, TRANSFORMS)
        valid = list(inspect.signature(kind).parameters)
        for argument in arguments:
            if argument not in valid:
                raise unknown(f"argument of {name}", argument, valid)
        try:
            made.append(kind(**arguments))
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"transform: {error}") from None
    if not made:
        return None
    return made[0] if len(made) == 1 else znorm.chain(*made)


def _imported(place: str) -> type[Transform]:
    """The class of a user's own at a place such as "package.module:Class"."""
    module, _, name = place.partition(":")
    try:
        kind = getattr(import_users_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"transform {place}: cannot be imported ({error})") from None
    if not (isinstance(kind, type) and issubclass(kind, Transform)):
        raise ConfigurationError(
            f"transform {place}: expected a class of the base znorm.transforms.Transform, found "
            f"{kind!r}"
        )
    return kind
