"""Steps that take the transform into the update: gradients are read, never written.

Used by `znorm.optim` where compiled kernels serve all parameters; elsewhere the transform is
applied to the gradients and torch's own step follows.

For small nets the bookkeeping of a step costs more than its arithmetic. So what a step needs is
kept in a `_Fold`, which lists what it rests on, and looks each time whether that is still so: no
pointer is used whose tensor has not just been looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter, is_
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from znorm import kernels
from znorm.attachment import Attachment, attachment_of
from znorm.layout import Layout
from znorm.receipts import Receipt
from znorm.step import compiled_parts, decide_stage

__all__ = ["Update", "step_folded"]

# Variants of torch's own step, which its options ask for.
_OTHERS = ("foreach", "capturable", "differentiable", "amsgrad")

_dtype, _is_cpu, _gradient = attrgetter("dtype"), attrgetter("is_cpu"), attrgetter("grad")


@dataclass(frozen=True)
class Update:
    """What a kind of optimizer brings to the kernels.

    Parameters
    ----------
    kind : str
        The name of the kernel: "ADAM" or "SGD".
    states : tuple of str
        Names of the state tensors that are as large as the parameter.
    prepare : callable (group, state, parameter) -> bool or None
        Fills an empty state as torch does. Whether it was filled before; None if it is a state
        that kernels do not know.
    advance : callable (part, owners, groups, states, begun) -> None
        Counts a step, and writes down the constants of each tensor's update.
    """

    kind: str
    states: tuple[str, ...]
    prepare: Callable[[dict[str, Any], dict[str, Any], Tensor], bool | None]
    advance: Callable[..., None]


@dataclass
class _Fold:
    """What one step of an optimizer needs, and what that rests on."""

    attachment: Attachment
    layout: Layout
    receipt: Receipt
    parameters: list[Tensor]
    owners: list[int]
    missing: list[bool]
    shapes: list[Any]
    addresses: list[int]
    gradient_strides: list[Any]
    gradient_dtypes: list[torch.dtype]
    threads: int
    state_dicts: list[dict[str, Any]]
    states: list[dict[str, Any]]
    held: list[Any]
    z_score: tuple[float, float, float, float] | None
    parts: list[Any]
    begun: list[bool] = field(default_factory=list)

    def still_holds(self, optimizer: Optimizer, attachment: Attachment | None) -> bool:
        groups = optimizer.param_groups
        parameters = [p for group in groups for p in group["params"]]
        kept = self.parameters
        if (
            attachment is not self.attachment
            or len(parameters) != len(kept)
            or not all(map(is_, parameters, kept))
            or torch.get_num_threads() != self.threads
            or list(map(Tensor.data_ptr, kept)) != self.addresses
            or _shapes(kept) != self.shapes
        ):
            return False
        gradients = list(map(_gradient, kept))
        if [g is None for g in gradients] != self.missing:
            return False
        present = [g for g in gradients if g is not None]
        if list(map(_dtype, present)) != self.gradient_dtypes or not all(map(_is_cpu, present)):
            return False
        # A sparse tensor has no strides: torch says so by raising.
        if any(g.layout is not torch.strided for g in present):
            return False
        if list(map(Tensor.stride, present)) != self.gradient_strides:
            return False
        found = list(optimizer.state.values())
        return (
            len(found) == len(self.state_dicts)
            and all(map(is_, found, self.state_dicts))
            and all(map(is_, _held(self.states), self.held))
        )


def step_folded(optimizer: Optimizer, update: Update) -> bool:
    """Take one step, if compiled kernels serve all of it.

    Returns
    -------
    bool
        False, with nothing done, if they do not.
    """
    if kernels.compiled() is None:
        return False
    return cast(bool, torch.compiler.disable(_step_folded)(optimizer, update))


@torch.no_grad()
def _step_folded(optimizer: Optimizer, update: Update) -> bool:
    attachment = attachment_of(optimizer)
    fold: _Fold | None = optimizer.__dict__.get("_fold")
    if fold is None or not fold.still_holds(optimizer, attachment):
        fold = _make_fold(optimizer, update, attachment)
        optimizer.__dict__["_fold"] = fold
        if fold is None:
            return False
    if not _is_ours(optimizer.param_groups):
        return False
    scale, skip = getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None)
    if skip is not None and float(skip):
        return True
    factor = 1.0 if scale is None else 1.0 / float(scale)
    gradients = list(map(_gradient, fold.parameters))
    decision = None
    if fold.z_score is None:
        tensor = None if scale is None else torch.tensor(factor, dtype=torch.float64)
        decision = decide_stage(gradients, fold.layout, tensor, fold.parameters)
    for part in fold.parts:
        with part.plan.lock:
            part.point_at(gradients, 1)
            update.advance(part, fold.owners, optimizer.param_groups, fold.states, fold.begun)
            if fold.z_score is not None:
                part.plan.run(getattr(part, update.kind), fold.z_score, factor)
                fold.receipt.record_compiled(part, fold.z_score, factor)
            elif decision is not None:
                part.plan.give(decision.affine.center, decision.affine.scale)
                part.plan.run(getattr(part, update.kind), factor=factor)
    if decision is not None:
        fold.receipt.record(decision)
    fold.begun = [not missing for missing in fold.missing]
    return True


def _is_ours(groups: Sequence[dict[str, Any]]) -> bool:
    """Whether no option asks for another step."""
    return not any(
        group.get("fused") is False or any(group.get(name) for name in _OTHERS) for group in groups
    )


def _make_fold(optimizer: Optimizer, update: Update, attachment: Attachment | None) -> _Fold | None:
    if attachment is None or not _is_ours(optimizer.param_groups):
        return None
    found = attachment.single()
    if found is None:
        return None
    layout, receipt = found
    groups = optimizer.param_groups
    parameters: list[Tensor] = [p for group in groups for p in group["params"]]
    owners = [number for number, group in enumerate(groups) for _ in group["params"]]
    gradients = [p.grad for p in parameters]
    z_score = layout.z_score
    if any(row.units > 1 for row in layout.rows):
        z_score = None
    parts = compiled_parts(
        gradients, layout, measures=z_score is not None, everything=True, kept=False
    )
    served = {number for part in parts for number in part.numbers}
    for number, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
        if gradient is None:
            continue
        if number not in served or not _alike(parameter, gradient):
            return None
    states: list[dict[str, Any]] = []
    begun: list[bool] = []
    for parameter, gradient, owner in zip(parameters, gradients, owners, strict=True):
        group = groups[owner]
        if gradient is None or group.get("momentum") == 0:
            # torch's SGD without momentum keeps no state.
            states.append({})
            begun.append(True)
            continue
        state = optimizer.state[parameter]
        before = update.prepare(group, state, parameter)
        held = [state[name] for name in update.states if state.get(name) is not None]
        if before is None or not all(_alike(parameter, tensor) for tensor in held):
            return None
        states.append(state)
        begun.append(before)
    for part in parts:
        part.point_at(parameters, 0)
        for place, name in enumerate(update.states, start=2):
            part.point_at([state.get(name) for state in states], place)
    present = [g for g in gradients if g is not None]
    return _Fold(
        attachment,
        layout,
        receipt,
        parameters,
        owners,
        [g is None for g in gradients],
        _shapes(parameters),
        list(map(Tensor.data_ptr, parameters)),
        list(map(Tensor.stride, present)),
        list(map(_dtype, present)),
        torch.get_num_threads(),
        list(optimizer.state.values()),
        states,
        _held(states),
        z_score,
        parts,
        begun,
    )


def _alike(parameter: Tensor, other: Tensor) -> bool:
    return (
        other.stride() == parameter.stride()
        and other.dtype == parameter.dtype
        and other.device == parameter.device
    )


def _shapes(parameters: Sequence[Tensor]) -> list[Any]:
    return [
        *map(Tensor.stride, parameters),
        *map(Tensor.numel, parameters),
        *map(_dtype, parameters),
    ]


def _held(states: Sequence[dict[str, Any]]) -> list[Any]:
    return [value for state in states for value in state.values()]
