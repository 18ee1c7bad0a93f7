"""Steps that take the transform into the update: gradients are read, never written.

Used by `znorm.optim` where compiled kernels serve all parameters; elsewhere the transform is
applied to the gradients and torch's own step follows.

For small nets the bookkeeping of a step costs more than its arithmetic. So what a step needs is
kept in a `_Fold`, which lists what it rests on, and looks each time whether that is still so: no
pointer is used whose tensor has not just been looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from znorm import kernels
from znorm.attachment import Attachment, own_attachment
from znorm.callers import makes_empty_state
from znorm.layers import is_dense
from znorm.layout import Layout
from znorm.receipts import Receipt
from znorm.rows import is_plain
from znorm.step import compiled_parts, decide_stage

__all__ = ["Update", "lies_as", "step_folded", "why_not_folded"]

# Variants of torch's own step, which its options ask for.
_OTHERS = ("foreach", "capturable", "differentiable", "amsgrad")

_dtype, _bytes, _gradient = attrgetter("dtype"), attrgetter("nbytes"), attrgetter("grad")


@dataclass(frozen=True)
class Update:
    """What a kind of optimizer brings to the kernels.

    Parameters
    ----------
    kind : str
        The name of the kernel: "ADAM" or "SGD".
    states : tuple of str
        Names of the state tensors that are as large as the parameter.
    counts : bool
        Whether the state holds a step counter, and is never filled in part.
    prepare : callable (group, state, parameter) -> bool
        Fills an empty state as torch does. Whether it was filled before.
    options : callable (groups) -> list of lists of numbers
        What the kernels need to know of each parameter group, see `kernels.cpu.drivers`.
    """

    kind: str
    states: tuple[str, ...]
    counts: bool
    prepare: Callable[[dict[str, Any], dict[str, Any], Tensor], bool]
    options: Callable[[list[dict[str, Any]]], Any]


@dataclass
class _Fold:
    """What one step of an optimizer needs, and what that rests on."""

    attachment: Attachment
    layout: Layout
    receipt: Receipt
    parameters: list[Tensor]
    groups: list[tuple[int, bool]]
    missing: list[bool]
    addresses: list[int]
    sizes: list[int]
    strides: list[Any]
    dtypes: list[torch.dtype]
    gradients: list[Any] | None
    threads: int
    state_dicts: list[dict[str, Any]]
    states: list[dict[str, Any]]
    lengths: list[int]
    held: list[Any]
    tensors: list[Tensor]
    state_addresses: list[int]
    large: list[Tensor]
    state_bytes: list[int]
    z_score: tuple[float, float, float, float] | None
    parts: list[Any]
    written: list[Tensor]

    def still_holds(
        self, optimizer: Optimizer, attachment: Attachment | None, gradients: list[Any]
    ) -> bool:
        """Whether all is as it was, but for where gradients lie."""
        kept = self.parameters
        return (
            attachment is self.attachment
            and torch.get_num_threads() == self.threads
            and _grouped(optimizer.param_groups) == self.groups
            and list(map(is_, gradients, repeat(None))) == self.missing
            and list(map(Tensor.data_ptr, kept)) == self.addresses
            and list(map(Tensor.numel, kept)) == self.sizes
            and list(map(Tensor.stride, kept)) == self.strides
            and list(map(_dtype, kept)) == self.dtypes
            and _described(gradients, True in self.missing) == self.gradients
            and len(optimizer.state) == len(self.state_dicts)
            and all(map(is_, optimizer.state.values(), self.state_dicts))
            and list(map(len, self.states)) == self.lengths
            and all(map(is_, _held(self.states), self.held))
            and list(map(Tensor.data_ptr, self.tensors)) == self.state_addresses
            and list(map(_bytes, self.large)) == self.state_bytes
        )


def step_folded(optimizer: Optimizer, update: Update) -> bool:
    """Take one step, if compiled kernels serve all of it.

    Returns
    -------
    bool
        False, with nothing done, if they do not.
    """
    # Compiled kernels are not for torch.compile to trace.
    return not kernels.reference.is_traced() and _step_folded(optimizer, update)


@torch.no_grad()
def _step_folded(optimizer: Optimizer, update: Update) -> bool:
    attachment = own_attachment(optimizer)
    groups = optimizer.param_groups
    if _asks_for_torchs(groups) is not None or (attachment is not None and attachment.by_hooks):
        return False
    scale, skip = getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None)
    if attachment is not None and skip is not None and skip.device.type == "cpu" and float(skip):
        return True  # before any state is made: torch's own then has none either
    parameters = [p for group in groups for p in group["params"]]
    gradients = list(map(_gradient, parameters))
    empty = makes_empty_state(optimizer)
    fold: _Fold | None = optimizer.__dict__.get("_fold")
    if (
        fold is None
        or len(parameters) != len(fold.parameters)
        or not all(map(is_, parameters, fold.parameters))
        or not fold.still_holds(optimizer, attachment, gradients)
    ):
        if attachment is not None and skip is not None and float(skip):
            return True  # once: a first step that is skipped leaves no state behind
        fold = _make_fold(optimizer, update, attachment)
        optimizer.__dict__["_fold"] = fold
        if fold is None:
            return False
    decided: Any = fold.z_score
    decision = None
    if decided is None:
        wide = kernels.reference.statistics_dtype(fold.layout.device)
        factor = None if scale is None else scale.to(wide).reciprocal()
        decision = decide_stage(gradients, fold.layout, factor, fold.parameters)
        decided = decision.affine.center, decision.affine.scale
    options = update.options(groups)
    receipt = None if empty else fold.receipt
    for part in fold.parts:
        part.step_(
            update.kind, gradients, options, decided, scale=scale, skip=skip, receipt=receipt
        )
    if decision is not None and receipt is not None:
        receipt.record(decision, skip)
    # It cannot see what kernels do: a graph that has kept a weight then raises.
    torch.autograd.graph.increment_version(fold.written)
    return True


def why_not_folded(optimizer: Optimizer, *, load: bool = True) -> str | None:
    """What keeps the transform out of the update kernel, as far as it shows before a step.

    Parameters
    ----------
    optimizer : Optimizer
    load : bool, default True
        As in `kernels.why_not`.

    Returns
    -------
    str or None
        A few words; None if nothing does.
    """
    attachment = own_attachment(optimizer)
    if attachment is None:
        return "it has no transform"
    option = _asks_for_torchs(optimizer.param_groups)
    if option is not None:
        return f"{option} asks for torch's own step"
    if attachment.single() is None:
        return f"{attachment.transform!r} does not fold into one update"
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if not all(p.numel() and is_dense(tuple(p.shape), p.stride()) for p in parameters):
        return "a parameter is empty or does not fill its memory"
    kinds = dict.fromkeys((p.device, p.dtype) for p in parameters)
    for device, dtype in kinds:
        reason = kernels.why_not(device, dtype, load=load)
        if reason is not None:
            return reason
    return None


def _asks_for_torchs(groups: Sequence[dict[str, Any]]) -> str | None:
    """The option that asks for torch's own step, if one does."""
    for group in groups:
        for name in _OTHERS:
            if group.get(name) and not (name == "capturable" and _is_on_gpu(group)):
                return f"{name}=True"
        if group.get("fused") is False:
            return "fused=False"
    return None


def _is_on_gpu(group: dict[str, Any]) -> bool:
    return all(p.is_cuda for p in group["params"])


def _make_fold(optimizer: Optimizer, update: Update, attachment: Attachment | None) -> _Fold | None:
    if attachment is None:
        return None
    found = attachment.single()
    if found is None:
        return None
    layout, receipt = found
    groups = optimizer.param_groups
    parameters: list[Tensor] = [p for group in groups for p in group["params"]]
    if len(parameters) != len(layout.rows):
        return None  # one is there twice: torch steps twice on it, one after the other
    owners = [number for number, group in enumerate(groups) for _ in group["params"]]
    gradients = [p.grad for p in parameters]
    attachment.see([(layout, gradients)])
    z_score = layout.z_score
    devices = {p.device for p in parameters}
    if any(row.units > 1 for row in layout.rows) or len(devices) > 1:
        z_score = None
    parts = compiled_parts(
        gradients, layout, measures=z_score is not None, everything=True, kept=False
    )
    served = {number for part in parts for number in part.numbers}
    for number, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
        if gradient is None:
            continue
        if number not in served or not lies_as(parameter, gradient):
            return None
    # All is looked at before anything is filled: torch's own step may have to do it.
    for parameter, gradient in zip(parameters, gradients, strict=True):
        state_ = optimizer.state.get(parameter)
        if gradient is not None and not _is_known(state_, parameter, update):
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
        begun.append(update.prepare(group, state, parameter))
        states.append(state)
    for part in parts:
        part.begin(parameters, states, update.states, owners, begun)
    missing = [g is None for g in gradients]
    held = list(_held(states))
    tensors = [value for value in held if isinstance(value, Tensor)]
    # A place that has not moved can still hold another number of bytes, that kernels write past.
    large = [t for t in tensors if t.dim()]
    return _Fold(
        attachment,
        layout,
        receipt,
        parameters,
        _grouped(groups),
        missing,
        list(map(Tensor.data_ptr, parameters)),
        list(map(Tensor.numel, parameters)),
        list(map(Tensor.stride, parameters)),
        list(map(_dtype, parameters)),
        _described(gradients, True in missing),
        torch.get_num_threads(),
        list(optimizer.state.values()),
        states,
        list(map(len, states)),
        held,
        tensors,
        list(map(Tensor.data_ptr, tensors)),
        large,
        list(map(_bytes, large)),
        z_score,
        parts,
        [p for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None],
    )


def _grouped(groups: Sequence[dict[str, Any]]) -> list[tuple[int, bool]]:
    """What kernels rest on of the groups: who belongs to which, and who has a buffer."""
    return [(len(group["params"]), group.get("momentum") == 0) for group in groups]


def _is_known(state: dict[str, Any] | None, parameter: Tensor, update: Update) -> bool:
    """Whether kernels can take a state up, if there is one: half of one is torch's to refuse."""
    if not state:
        return True
    step = state.get("step")
    if update.counts and not (
        isinstance(step, Tensor)
        and step.numel() == 1
        and step.dtype == torch.float32
        and step.device.type in ("cpu", parameter.device.type)
    ):
        return False
    tensors = [state.get(name) for name in update.states]
    if not update.counts:  # torch's SGD begins a momentum that is missing
        tensors = [t for t in tensors if t is not None]
    return all(isinstance(t, Tensor) and lies_as(parameter, t) for t in tensors)


def lies_as(parameter: Tensor, other: Tensor) -> bool:
    """Whether a tensor is as large as a parameter, of its kind and in its memory order.

    Kernels take that for granted, torch's own fused ones too.
    """
    return (
        is_plain(parameter)
        and is_plain(other)  # of a subclass that dispatches the elements lie elsewhere
        and other.layout == torch.strided
        and not other.is_neg()  # a view of what is to be read with its sign changed
        and other.shape == parameter.shape
        and other.stride() == parameter.stride()
        and other.dtype == parameter.dtype
        and other.device == parameter.device
    )


def _described(gradients: Sequence[Tensor | None], some_missing: bool) -> list[Any] | None:
    """Strides, sizes, types and whether they lie as they read; None for what has no strides.

    On another device than its parameter torch lets no gradient be.
    """
    present: Any = gradients
    if some_missing:
        present = [g for g in gradients if g is not None]
    try:
        strides = list(map(Tensor.stride, present))
    except RuntimeError:  # sparse
        return None
    sizes = map(Tensor.numel, present)
    signs = any(map(Tensor.is_neg, present))
    kinds = map(type, present)
    return [*strides, *sizes, *map(_dtype, present), *kinds, signs]


def _held(states: Sequence[dict[str, Any]]) -> Iterator[Any]:
    return chain.from_iterable(map(dict.values, states))
