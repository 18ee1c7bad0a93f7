"""The gradients of parameters as they can be written, and what they are scaled by."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from znorm.kernels.reference import statistics_dtype
from znorm.sharding import is_dtensor, shard_of

__all__ = ["loss_scale", "writable_gradients"]

_gradient = attrgetter("grad")


def writable_gradients(parameters: Sequence[Tensor], *, observes: bool) -> list[Tensor | None]:
    """Each parameter's gradient in memory of its own, which may be written entry by entry.

    A gradient that cannot is replaced, on the parameter too. ``observes`` leaves out what would
    have to be written in vain.
    """
    gradients: list[Tensor | None] = list(map(_gradient, parameters))
    present = [gradient for gradient in gradients if gradient is not None]
    # All of them at a time, since this is done in each step and seldom finds anything.
    if not _are_usual(present):
        gradients = [_writable(parameter, observes) for parameter in parameters]
        present = [gradient for gradient in gradients if gradient is not None]
    places = _places(present)
    if len(set(places)) < len(places):
        _separate(parameters, gradients)
    return gradients


def _are_usual(gradients: Sequence[Tensor]) -> bool:
    try:
        return (
            set(map(type, gradients)) <= {Tensor}
            and all(map(Tensor.is_contiguous, gradients))
            and not any(map(Tensor.is_conj, gradients))
        )
    except RuntimeError:  # sparse ones of some layouts
        return False


def _writable(parameter: Tensor, observes: bool) -> Tensor | None:
    gradient = parameter.grad
    if gradient is not None and gradient.is_conj():
        gradient = parameter.grad = gradient.resolve_conj()
    if gradient is not None and is_dtensor(gradient) and is_dtensor(parameter):
        gradient = parameter.grad = _redistributed(parameter, gradient)
    elif gradient is not None and gradient.layout != torch.strided:
        if observes:
            gradient = None  # nothing is written, so that nothing can be wrong
    elif gradient is not None and not gradient.is_contiguous() and 0 in gradient.stride():
        # Expanded: several entries lie in one place, which cannot be written one by one.
        gradient = parameter.grad = gradient.clone(memory_format=torch.contiguous_format)
    return gradient


def _redistributed(parameter: Any, gradient: Any) -> Tensor:
    """A sharded gradient as its parameter lies; a sum over processes that is left open, closed."""
    lies_else = gradient.placements != parameter.placements
    if lies_else and gradient.device_mesh == parameter.device_mesh:
        gradient = gradient.redistribute(parameter.device_mesh, parameter.placements)
    if 0 in shard_of(gradient).stride():
        gradient = gradient.clone(memory_format=torch.contiguous_format)
    alike: Tensor = gradient
    return alike


def _places(gradients: Sequence[Tensor]) -> list[int]:
    """The address of each in memory; one that has none there counts as itself."""
    try:
        if set(map(type, gradients)) <= {Tensor}:
            places = list(map(Tensor.data_ptr, gradients))
            if 0 not in places:
                return places
        return [(type(g) is Tensor and g.data_ptr()) or id(g) for g in gradients]
    except RuntimeError:  # functorch's tensors
        return list(map(id, gradients))


def _separate(parameters: Sequence[Tensor], gradients: list[Tensor | None]) -> None:
    """Give each parameter a gradient of its own, where several share one that is to be written."""
    seen: set[int] = set()
    for number, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
        if gradient is None:
            continue
        (place,) = _places([gradient])
        if place in seen:
            gradients[number] = parameter.grad = gradient.clone()
        seen.add(place)


def loss_scale(optimizer: Optimizer, *, take_over: bool) -> tuple[Tensor | None, Tensor | None]:
    """The inverse of the loss scale that gradients still have, and whether the step is skipped.

    GradScaler leaves gradients scaled for a fused step, whose kernel divides by the loss scale
    after this hook: of a z-score that would leave 1/65536. What is taken over is not done again by
    the kernel; ``found_inf`` stays in force, so that a step which overflowed is still skipped.
    """
    found_inf = getattr(optimizer, "found_inf", None)
    scale = getattr(optimizer, "grad_scale", None)
    if scale is None:
        return None, found_inf
    if take_over:
        cast(Any, optimizer).grad_scale = None
    inv_scale: Tensor = scale.to(statistics_dtype(scale.device)).reciprocal()
    return inv_scale, found_inf
