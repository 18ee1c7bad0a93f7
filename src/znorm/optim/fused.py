"""A step whose transform is part of the update kernel, where compiled kernels serve all of it.

What a step needs is made once and kept with the optimizer, as a `FusedStep`; each step looks
whether all that it rests on is still so. That look is a third of the time of a small net's step,
which is why it goes over lists at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from znorm._torch_internals import is_traced, makes_empty_state
from znorm.engine.exchange import here
from znorm.engine.execute import compiled_batches, decide_stage
from znorm.engine.receipts import Receipt
from znorm.kernels.base import Coefficients, KernelBatch, StepContext, UpdateRule
from znorm.kernels.memory import lies_as
from znorm.kernels.reference import statistics_dtype
from znorm.kernels.registry import can_update, why_not
from znorm.layers import is_dense
from znorm.layout import Layout
from znorm.sharding import lie_alike, shard_of
from znorm.step_hooks import own_attachment
from znorm.transforms.base import ZScore

__all__ = ["FusedStep", "take_fused_step", "why_not_fused"]

# Variants of torch's own step, which its options ask for.
_VARIANTS = ("foreach", "capturable", "differentiable")

_dtype, _bytes, _gradient = attrgetter("dtype"), attrgetter("nbytes"), attrgetter("grad")


@dataclass
class _Weights:
    """Parameters, their groups, and which of them have a gradient, as they were seen last.

    ``parameters`` are the optimizer's; ``shards`` what of them lies here, which is the same unless
    ``sharded``.
    """

    parameters: list[Tensor]
    shards: list[Tensor]
    sharded: bool
    groups: list[tuple[int, tuple[str, ...]]]
    missing: list[bool]
    addresses: list[int]
    sizes: list[int]
    strides: list[Any]
    dtypes: list[torch.dtype]
    gradients: list[Any] | None
    each: list[Any]

    @classmethod
    def seen(
        cls,
        parameters: list[Tensor],
        shards: list[Tensor],
        groups: Sequence[dict[str, Any]],
        gradients: Sequence[Tensor | None],
        rule: UpdateRule,
    ) -> _Weights:
        missing = [gradient is None for gradient in gradients]
        return cls(
            parameters=parameters,
            shards=shards,
            sharded=not all(map(is_, shards, parameters)),
            groups=_grouped(groups, rule),
            missing=missing,
            addresses=list(map(Tensor.data_ptr, shards)),
            sizes=list(map(Tensor.numel, shards)),
            strides=list(map(Tensor.stride, shards)),
            dtypes=list(map(_dtype, shards)),
            gradients=_described(gradients, True in missing),
            each=[None if g is None else _described([g], some_missing=False) for g in gradients],
        )

    def still_hold(
        self,
        groups: Sequence[dict[str, Any]],
        gradients: Sequence[Tensor | None],
        rule: UpdateRule,
    ) -> bool:
        kept = self.shards
        return (
            not (self.sharded and not all(map(is_, map(shard_of, self.parameters), kept)))
            and _grouped(groups, rule) == self.groups
            and self._serve(gradients)
            and list(map(Tensor.data_ptr, kept)) == self.addresses
            and list(map(Tensor.numel, kept)) == self.sizes
            and list(map(Tensor.stride, kept)) == self.strides
            and list(map(_dtype, kept)) == self.dtypes
        )

    def _serve(self, gradients: Sequence[Tensor | None]) -> bool:
        """True if these gradients are as they were, or some of them are missing now.

        What comes and goes, as the gradients of an expert do, must not cost a new plan each time.
        """
        if self.has_all(gradients):
            return _described(gradients, True in self.missing) == self.gradients
        return all(
            gradient is None
            or (known is not None and _described([gradient], some_missing=False) == known)
            for gradient, known in zip(gradients, self.each, strict=True)
        )

    def has_all(self, gradients: Sequence[Tensor | None]) -> bool:
        """True if the same gradients are there as when this was made."""
        return list(map(is_, gradients, repeat(None))) == self.missing


@dataclass
class _States:
    """An optimizer's states, as they were seen last."""

    dicts: list[dict[str, Any]]
    states: list[dict[str, Any]]
    lengths: list[int]
    values: list[Any]
    tensors: list[Tensor]
    addresses: list[int]
    large: list[Tensor]
    bytes: list[int]

    @classmethod
    def seen(cls, optimizer: Optimizer, states: list[dict[str, Any]]) -> _States:
        values = list(_values(states))
        tensors = [shard_of(value) for value in values if isinstance(value, Tensor)]
        # A place that has not moved can still hold another number of bytes, that kernels write
        # past.
        large = [tensor for tensor in tensors if tensor.dim()]
        return cls(
            dicts=list(optimizer.state.values()),
            states=states,
            lengths=list(map(len, states)),
            values=values,
            tensors=tensors,
            addresses=list(map(Tensor.data_ptr, tensors)),
            large=large,
            bytes=list(map(_bytes, large)),
        )

    def still_hold(self, optimizer: Optimizer) -> bool:
        return (
            len(optimizer.state) == len(self.dicts)
            and all(map(is_, optimizer.state.values(), self.dicts))
            and list(map(len, self.states)) == self.lengths
            and all(map(is_, _values(self.states), self.values))
            and list(map(Tensor.data_ptr, self.tensors)) == self.addresses
            and list(map(_bytes, self.large)) == self.bytes
        )


@dataclass
class FusedStep:
    """The parts of one step of an optimizer, and all that they rest on.

    Parameters
    ----------
    attachment
        The optimizer's, whose transform is part of the step.
    rule : UpdateRule
    layout : Layout
    receipt : Receipt
    weights, states
        As they were when this was made.
    threads : int
        So many torch had then.
    z_score : ZScore or None
        What kernels decide by themselves; else coefficients are decided in Python.
    batches : list of KernelBatch
    written : list of list of Tensor
        For each parameter what is written where it has a gradient.
    unserved : dict of int to Tensor
        Step counters of shards that are empty, which no kernel sees, by the parameter's number.
    """

    attachment: Any
    rule: UpdateRule
    layout: Layout
    receipt: Receipt
    weights: _Weights
    states: _States
    threads: int
    z_score: ZScore | None
    batches: list[KernelBatch]
    written: list[list[Tensor]]
    unserved: dict[int, Tensor]

    def still_holds(
        self, optimizer: Optimizer, attachment: Any, gradients: Sequence[Tensor | None]
    ) -> bool:
        """True if all is as it was, but for where gradients lie."""
        return (
            attachment is self.attachment
            and torch.get_num_threads() == self.threads
            and self.weights.still_hold(optimizer.param_groups, gradients, self.rule)
            and self.states.still_hold(optimizer)
        )


def take_fused_step(optimizer: Optimizer, rule: UpdateRule) -> bool:
    """Take one step, if compiled kernels serve all of it.

    Returns
    -------
    bool
        False, with nothing done, if they do not.
    """
    # Compiled kernels are not for torch.compile to trace.
    return not is_traced() and _take_fused_step(optimizer, rule)


@torch.no_grad()
def _take_fused_step(optimizer: Optimizer, rule: UpdateRule) -> bool:
    attachment = own_attachment(optimizer)
    groups = optimizer.param_groups
    if _asks_for_torchs(groups, rule) is not None or (
        attachment is not None and attachment.by_hooks
    ):
        return False
    scale = getattr(optimizer, "grad_scale", None)
    found_inf: Any = getattr(optimizer, "found_inf", None)
    on_host = found_inf is not None and found_inf.device.type == "cpu"
    if attachment is not None and on_host and float(found_inf):
        return True  # before any state is made: torch's own then has none either
    parameters = [p for group in groups for p in group["params"]]
    gradients: Sequence[Tensor | None] = list(map(_gradient, parameters))
    makes_state = makes_empty_state(optimizer)
    fused: FusedStep | None = optimizer.__dict__.get("_fused_step")
    known = (
        fused is not None
        and len(parameters) == len(fused.weights.parameters)
        and all(map(is_, parameters, fused.weights.parameters))
    )
    if fused is None or not known or fused.weights.sharded:
        shards = _shards(parameters, gradients)
        if shards is None:
            return False
        gradients = shards
    if fused is None or not known or not fused.still_holds(optimizer, attachment, gradients):
        if attachment is not None and found_inf is not None and float(found_inf):
            return True  # once: a first step that is skipped leaves no state behind
        fused = _make_fused_step(optimizer, rule, attachment, gradients)
        optimizer.__dict__["_fused_step"] = fused
        if fused is None:
            return False
    inv_scale = None
    if scale is not None:
        inv_scale = scale.to(statistics_dtype(fused.layout.device)).reciprocal()
    decision: ZScore | Coefficients | None = fused.z_score
    decided = None
    if decision is None and makes_state and fused.layout.sharded:
        decision = _identity(fused.layout)  # one process may take this step alone
    elif decision is None:
        decided = decide_stage(gradients, fused.layout, inv_scale, fused.weights.parameters)
        affine = here(decided.affine, fused.layout)
        decision = Coefficients(affine.center, affine.scale)
    receipt = None if makes_state else fused.receipt
    hyperparameters = [rule.hyperparameters(group) for group in groups]
    context = StepContext(inv_scale, found_inf, receipt)
    for batch in fused.batches:
        batch.update_(gradients, hyperparameters, decision, context)
    unserved = [step for at, step in fused.unserved.items() if gradients[at] is not None]
    if unserved and not makes_state:
        stepped = 1 if found_inf is None else (found_inf.reshape(()) == 0).to(unserved[0])
        torch._foreach_add_(unserved, stepped)
    if decided is not None and receipt is not None:
        receipt.add(receipt.of_decision(decided), found_inf)
    # It cannot see what kernels do: a graph that has kept a weight then raises.
    there = zip(fused.written, gradients, strict=True)
    torch.autograd.graph.increment_version([t for ts, g in there if g is not None for t in ts])
    return True


def _identity(layout: Layout) -> Coefficients:
    ones = torch.ones_like(layout.local.count)
    return Coefficients(torch.zeros_like(ones), ones)


def why_not_fused(optimizer: Optimizer, rule: UpdateRule, *, load: bool = True) -> str | None:
    """The reason that keeps the transform out of the kernel, as far as it shows before a step.

    Parameters
    ----------
    optimizer : Optimizer
    rule : UpdateRule
    load : bool, default True
        As in `kernels.registry.why_not`.

    Returns
    -------
    str or None
        A few words; None if nothing does.
    """
    attachment = own_attachment(optimizer)
    if attachment is None:
        return "it has no transform"
    option = _asks_for_torchs(optimizer.param_groups, rule)
    if option is not None:
        return f"{option} asks for torch's own step"
    if attachment.single() is None:
        return f"{attachment.transform!r} does not fold into one update"
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    shards = list(map(shard_of, parameters))
    # An empty shard is no empty parameter.
    if not all(p.numel() for p in parameters) or not all(
        is_dense(tuple(p.shape), p.stride()) for p in shards
    ):
        return "a parameter is empty or does not fill its memory"
    kinds = dict.fromkeys((p.device, p.dtype) for p in parameters)
    reasons = (why_not(device, dtype, rule=rule, load=load) for device, dtype in kinds)
    return next((reason for reason in reasons if reason is not None), None)


def _asks_for_torchs(groups: Sequence[dict[str, Any]], rule: UpdateRule) -> str | None:
    """The option that asks for torch's own step, if one does."""
    for group in groups:
        for name in (*_VARIANTS, *rule.unsupported):
            if group.get(name) and not (name == "capturable" and _is_on_gpu(group)):
                return f"{name}=True"
        if group.get("fused") is False:
            return "fused=False"
    return None


def _is_on_gpu(group: dict[str, Any]) -> bool:
    return all(p.is_cuda for p in group["params"])


def _make_fused_step(
    optimizer: Optimizer,
    rule: UpdateRule,
    attachment: Any | None,
    gradients: Sequence[Tensor | None],
) -> FusedStep | None:
    single = None if attachment is None else attachment.single()
    if attachment is None or single is None:
        return None
    layout, receipt = single
    groups = optimizer.param_groups
    parameters: list[Tensor] = [p for group in groups for p in group["params"]]
    if len(parameters) != len(layout.entries):
        return None  # one is there twice: torch steps twice on it, one after the other
    owners = [number for number, group in enumerate(groups) for _ in group["params"]]
    shards = list(map(shard_of, parameters))
    # Kernels write by address: what a layout was made for must lie so.
    made_for = zip(layout.local.entries, shards, strict=True)
    if any(entry.selected and entry.shape != tuple(shard.shape) for entry, shard in made_for):
        return None
    attachment.look_for_gradients([(layout, gradients)])
    form = layout.fused_form
    z_score = form if isinstance(form, ZScore) else None
    devices = {p.device for p in parameters}
    if any(entry.units > 1 for entry in layout.entries) or len(devices) > 1 or layout.sharded:
        z_score = None
    batches = compiled_batches(
        gradients, layout.local, measures=z_score is not None, everything=True, kept=False
    )
    served = {index for batch in batches for index in batch.indices}
    empty = {
        index
        for index, (shard, parameter) in enumerate(zip(shards, parameters, strict=True))
        if shard is not parameter and not shard.numel()
    }
    for index, (shard, gradient) in enumerate(zip(shards, gradients, strict=True)):
        if gradient is None:
            continue
        if index not in served | empty or not lies_as(shard, gradient):
            return None
    # All is looked at before anything is filled: torch's own step may have to do it.
    for index, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
        state_, group = optimizer.state.get(parameter), groups[owners[index]]
        if gradient is not None and not _is_known(state_, shards[index], rule, group):
            return None
    if not all(can_update(rule, batch, shards[batch.indices[0]].dtype) for batch in batches):
        return None
    states: list[dict[str, Any]] = []
    initialized: list[bool] = []
    for parameter, gradient, owner in zip(parameters, gradients, owners, strict=True):
        group = groups[owner]
        if gradient is None or not (rule.counts_steps or rule.names_of(group)):
            states.append({})
            initialized.append(True)
            continue
        state = optimizer.state[parameter]
        initialized.append(rule.init_state(group, state, parameter))
        states.append(state)
    states_here = [
        {k: shard_of(v) if isinstance(v, Tensor) else v for k, v in state.items()}
        for state in states
    ]
    for batch in batches:
        batch.bind_state(rule, shards, states_here, owners, initialized)
    return FusedStep(
        attachment,
        rule,
        layout,
        receipt,
        weights=_Weights.seen(parameters, shards, groups, gradients, rule),
        states=_States.seen(optimizer, states),
        threads=torch.get_num_threads(),
        z_score=z_score,
        batches=batches,
        written=[list(dict.fromkeys(pair)) for pair in zip(parameters, shards, strict=True)],
        unserved={i: states[i]["step"] for i in sorted(empty - served) if "step" in states[i]},
    )


def _shards(
    parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]
) -> list[Tensor | None] | None:
    """Gradients as they lie here; None where one is sharded in another way than its parameter."""
    shards: list[Tensor | None] = []
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None and not lie_alike(parameter, gradient):
            return None
        shards.append(None if gradient is None else shard_of(gradient))
    return shards


def _grouped(
    groups: Sequence[dict[str, Any]], rule: UpdateRule
) -> list[tuple[int, tuple[str, ...]]]:
    """The facts of the groups that kernels rest on: who belongs to which, and who has states."""
    return [(len(group["params"]), rule.names_of(group)) for group in groups]


def _is_known(
    state: dict[str, Any] | None, parameter: Tensor, rule: UpdateRule, group: dict[str, Any]
) -> bool:
    """True if kernels can take a state up, or there is none: half of one is torch's to refuse."""
    if not state or all(value is None for value in state.values()):
        return True
    step = state.get("step")
    if rule.counts_steps and not (
        isinstance(step, Tensor)
        and step.numel() == 1
        and step.dtype == torch.float32
        and step.device.type in ("cpu", parameter.device.type)
    ):
        return False
    tensors = [state.get(name) for name in rule.names_of(group)]
    return all(isinstance(t, Tensor) and lies_as(parameter, shard_of(t)) for t in tensors)


def _described(gradients: Sequence[Tensor | None], some_missing: bool) -> list[Any] | None:
    """Strides, sizes, types and whether they lie as they read; None for what has no strides.

    On another device than its parameter torch lets no gradient be.
    """
    present: Any = gradients
    if some_missing:
        present = [gradient for gradient in gradients if gradient is not None]
    try:
        strides = list(map(Tensor.stride, present))
    except RuntimeError:  # sparse
        return None
    sizes = map(Tensor.numel, present)
    signs = any(map(Tensor.is_neg, present))
    kinds = map(type, present)
    return [*strides, *sizes, *map(_dtype, present), *kinds, signs]


def _values(states: Sequence[dict[str, Any]]) -> Iterator[Any]:
    return chain.from_iterable(map(dict.values, states))
