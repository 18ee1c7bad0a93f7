"""The methods that are compared: a method is a chain of transforms and a weight decay."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import znorm
from znorm.lab.errors import ConfigurationError
from znorm.lab.registry import lookup, unknown
from znorm.transforms import TRANSFORMS, Transform

__all__ = ["METHODS", "PUBLISHED", "Method", "label", "make_transform", "resolve"]

# A link as it is written in YAML and kept in a specification: {"ZNorm": {"eps": 1e-8}}.
Links = tuple[dict[str, dict[str, Any]], ...]


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
        Links of a chain, each a transform's name and its arguments.
    weight_decay : float
        Decoupled under Adam and AdamW.
    """

    label: str
    about: str
    transform: Links = field(default=())
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
}

# The rows of the paper's tables, and what is compared where nothing else is asked for.
PUBLISHED = tuple(METHODS)[:6]


def label(name: str) -> str:
    """What tables call a method; one that the user wrote goes by its name."""
    return METHODS[name].label if name in METHODS else name


def resolve(name: str, transform: Any, weight_decay: float | None) -> tuple[Links, float]:
    """The links and the weight decay of a method, by its name or as the user wrote them.

    Raises
    ------
    ConfigurationError
        For a name that is not known and comes without links, for a known one with others, for a
        link that is not a transform or has wrong arguments.
    """
    known = METHODS.get(name)
    if known is None and transform is None and weight_decay is None:
        raise unknown("method", name, METHODS)
    links = (known.transform if known else ()) if transform is None else _links(transform)
    if weight_decay is not None and (
        isinstance(weight_decay, bool) or not isinstance(weight_decay, int | float)
    ):
        raise ConfigurationError(
            f"method {name}: weight_decay must be a number, found {weight_decay!r}"
        )
    decay = (known.weight_decay if known else 0.0) if weight_decay is None else weight_decay
    if known is not None and (links != known.transform or decay != known.weight_decay):
        raise ConfigurationError(
            f"method {name}: its transform and weight decay are fixed; give yours another name"
        )
    make_transform(links)
    return links, decay


def _links(given: Any) -> Links:
    """Links in the form of a specification: "ZNorm", {"ZNorm": {...}} or a list of these."""
    items = given if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    links: list[dict[str, dict[str, Any]]] = []
    for item in items:
        link = {item: {}} if isinstance(item, str) else item
        if not isinstance(link, Mapping) or len(link) != 1:
            raise ConfigurationError(
                f"transform: expected a transform's name and its arguments, found {item!r}"
            )
        ((kind, arguments),) = link.items()
        lookup("transform", kind, TRANSFORMS)
        if arguments is not None and not isinstance(arguments, Mapping):
            raise ConfigurationError(
                f"transform {kind}: expected arguments by name, found {arguments!r}"
            )
        links.append({str(kind): dict(arguments or {})})
    return tuple(links)


def make_transform(links: Links) -> Transform | None:
    """The transform that links describe; None if there are none.

    Raises
    ------
    ConfigurationError
        Naming the link and the argument.
    """
    made = []
    for link in links:
        ((kind, arguments),) = link.items()
        valid = list(inspect.signature(TRANSFORMS[kind]).parameters)
        for argument in arguments:
            if argument not in valid:
                raise unknown(f"argument of {kind}", argument, valid)
        try:
            made.append(TRANSFORMS[kind](**arguments))
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"transform: {error}") from None
    if not made:
        return None
    return made[0] if len(made) == 1 else znorm.chain(*made)
