"""Gradient transforms: what is done to each layer's gradient, as formulas on its moments.

`base` is the contract; the others are one small class each.
"""

from __future__ import annotations

from typing import TypeVar

import torch

from znorm.layers import Layers
from znorm.transforms.adaptive import AdaptiveClip
from znorm.transforms.base import Transform
from znorm.transforms.centralize import Centralize
from znorm.transforms.clip import ClipGlobalNorm, ClipNorm, ClipValue
from znorm.transforms.composition import Chain, chain
from znorm.transforms.zscore import UnitNorm, ZNorm

__all__ = [
    "TRANSFORMS",
    "AdaptiveClip",
    "Centralize",
    "Chain",
    "ClipGlobalNorm",
    "ClipNorm",
    "ClipValue",
    "Transform",
    "UnitNorm",
    "ZNorm",
    "chain",
    "register",
]

TRANSFORMS: dict[str, type[Transform]] = {
    transform.__name__: transform
    for transform in (
        ZNorm,
        Centralize,
        UnitNorm,
        ClipValue,
        ClipNorm,
        ClipGlobalNorm,
        AdaptiveClip,
    )
}

# A transform is numbers and names: torch.load may read it with weights_only, in a checkpoint's
# hyperparameters for example.
torch.serialization.add_safe_globals([*TRANSFORMS.values(), Chain, Layers])

_Kind = TypeVar("_Kind", bound=type[Transform])


def register(kind: _Kind) -> _Kind:
    """Let a transform of your own go by its class's name, in a method written in YAML for example.

    Parameters
    ----------
    kind : type
        A class of the base :class:`Transform`; the decorator returns it as it is. ``torch.load``
        then reads its instances with ``weights_only``, so that it must be data.

    Raises
    ------
    TypeError
        If it is not such a class.
    ValueError
        If another class goes by that name.

    Examples
    --------
    >>> import torch, znorm
    >>> @znorm.transforms.register
    ... class Half(znorm.transforms.Transform):
    ...     def decide(self, moments, parameters=None):
    ...         zero = torch.zeros_like(moments.mean)
    ...         return znorm.Affine(zero, zero + 0.5)
    >>> znorm.transforms.TRANSFORMS.pop("Half") is Half
    True
    """
    if not (isinstance(kind, type) and issubclass(kind, Transform)):
        raise TypeError(f"register: expected a class of the base Transform, found {kind!r}")
    known = TRANSFORMS.setdefault(kind.__name__, kind)
    # A cell of a notebook that is run again makes the class anew.
    if (known.__module__, known.__qualname__) != (kind.__module__, kind.__qualname__):
        raise ValueError(
            f"register: {kind.__name__} is the name of {known.__module__}.{known.__qualname__} "
            "already; give yours another one"
        )
    TRANSFORMS[kind.__name__] = kind
    torch.serialization.add_safe_globals([kind])
    return kind
