"""Checks of gradients against the layout that they are to be transformed by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from znorm.entries import ParameterEntry
from znorm.layout import Layout
from znorm.sharding import Sharding, is_dtensor, shard_of

__all__ = ["aligned", "check_each_once"]


def aligned(gradients: Iterable[Tensor | None], layout: Layout) -> list[Tensor | None]:
    """The gradients as a list, if the layout's transforms can take them.

    Of sharded ones it holds the shards that lie in this process.

    Raises
    ------
    TypeError, ValueError
        For one that they cannot; it is named.
    """
    tensors = list(gradients)
    if len(tensors) != len(layout.entries):
        raise ValueError(
            f"gradients: found {len(tensors)} for the {len(layout.entries)} parameters of the "
            "layout; give one for each, in the same order, None where one is missing"
        )
    for entry, gradient in zip(layout.entries, tensors, strict=True):
        if gradient is not None and entry.selected:
            _check(entry, gradient)
    if layout.distributed:
        return [None if tensor is None else shard_of(tensor) for tensor in tensors]
    return tensors


def _check(entry: ParameterEntry, gradient: Tensor) -> None:
    if not isinstance(gradient, Tensor):
        raise TypeError(
            f"{entry.name}: its gradient must be a tensor, found {type(gradient).__name__}"
        )
    if not (gradient.is_floating_point() or gradient.is_complex()):
        raise TypeError(
            f"{entry.name}: its gradient is {gradient.dtype}; only floating point and complex are "
            "transformed"
        )
    if type(gradient) is not Tensor and is_dtensor(gradient):
        if entry.sharding is None:
            raise TypeError(
                f"{entry.name}: its gradient is sharded (DTensor), and the layout was made for a "
                "plain tensor; make it from the sharded parameters"
            )
        lies = Sharding.of(gradient)
        if lies is not None and lies != entry.sharding:
            raise ValueError(
                f"{entry.name}: its gradient lies on the processes as {lies.placements} says, the "
                f"parameter as {entry.sharding.placements}; redistribute it first"
            )
    elif entry.sharding is not None:
        raise TypeError(
            f"{entry.name}: its gradient is a plain tensor, the parameter sharded (DTensor); give "
            "the DTensor, or make the layout from the shards"
        )
    if gradient.layout != torch.strided:
        raise ValueError(
            f"{entry.name}: its gradient is sparse ({gradient.layout}), where each absent entry "
            "would get a value; make it dense (sparse=False), or leave it out by a rule of select, "
            'such as ("NAME", False)'
        )
    if gradient.device.type == "meta":
        raise ValueError(
            f"{entry.name}: its gradient is on the meta device and holds no data; materialize the "
            "model first"
        )
    if tuple(gradient.shape) != entry.shape:
        raise ValueError(
            f"{entry.name}: its gradient has the shape {tuple(gradient.shape)}, the layout "
            f"{entry.shape}; give the gradients in the order of the layout"
        )


def check_each_once(gradients: Sequence[Tensor | None], layout: Layout) -> None:
    """Raise for a tensor that is there twice: it would be transformed twice.

    Raises
    ------
    ValueError
    """
    names: dict[Tensor, str] = {}
    for entry, gradient in zip(layout.entries, gradients, strict=True):
        if gradient is not None and names.setdefault(gradient, entry.name) != entry.name:
            raise ValueError(
                f"{entry.name}: its gradient is the very tensor of {names[gradient]}; give each "
                "once"
            )
