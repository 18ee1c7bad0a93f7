"""The step of the optimizers of this package: which one is taken, and stochastic rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from znorm._torch_internals import SCALED_BY_STEP, refuse_grad_scaler, step_within_hooks
from znorm.attachment import attach
from znorm.kernels.base import UpdateRule
from znorm.kernels.memory import lies_as
from znorm.kernels.registry import name_on
from znorm.layers import is_dense
from znorm.optim.fused import take_fused_step, why_not_fused
from znorm.sharding import has_replicas
from znorm.step_hooks import own_attachment
from znorm.transforms.arguments import check_flag
from znorm.transforms.base import Transform

__all__ = ["gradients_of", "prepare", "shown", "take_step", "with_options"]

_VARIANTS = ("foreach", "fused", "capturable", "differentiable")


def prepare(
    optimizer: Optimizer,
    rule: UpdateRule,
    transform: Transform | None,
    model: nn.Module | None = None,
    module: nn.Module | None = None,
    stochastic_rounding: bool = False,
) -> None:
    """Set the options that torch's own optimizers do not have.

    Raises
    ------
    TypeError, ValueError
        As :func:`znorm.attach` does; if ``model`` and ``module`` are given, which are one thing; if
        ``stochastic_rounding`` is no flag, or a variant of torch's is asked for, none of which
        rounds so.
    RuntimeError
        If ``fused=True`` cannot be honoured.
    """
    _set_rounding(optimizer, stochastic_rounding)
    if model is not None and module is not None:
        raise TypeError(f"{type(optimizer).__name__}: model and module are one thing; give one")
    if transform is None:
        return
    attach(optimizer, transform, model=module if model is None else model)
    if any(group.get("fused") for group in optimizer.param_groups):
        reason = why_not_fused(optimizer, rule)
        if reason is not None:
            raise RuntimeError(
                f"{type(optimizer).__name__}: fused=True cannot be honoured: {reason}; leave it "
                "out for the best that works"
            )


def _set_rounding(optimizer: Optimizer, stochastic_rounding: bool) -> None:
    name = type(optimizer).__name__
    check_flag(name, "stochastic_rounding", stochastic_rounding)
    cast(Any, optimizer).stochastic_rounding = stochastic_rounding
    if not stochastic_rounding:
        return
    for group in optimizer.param_groups:
        _check_group(name, group)
    # GradScaler then neither unscales nor waits: both are done on the device, here.
    setattr(optimizer, SCALED_BY_STEP, True)


def _check_group(name: str, group: dict[str, Any]) -> None:
    for variant in _VARIANTS:
        if group.get(variant):
            raise ValueError(
                f"{name}: {variant}=True cannot round stochastically; leave out one of the two"
            )
    for parameter in group["params"]:
        if parameter.is_complex() or parameter.dtype == torch.float16:
            raise TypeError(
                f"{name}: stochastic_rounding is for bfloat16 weights, wider ones beside them; "
                f"found {parameter.dtype}"
            )
        if parameter.dtype == torch.bfloat16 and has_replicas(parameter):
            raise TypeError(
                f"{name}: stochastic_rounding draws on each process, and replicas of a weight "
                f"(DTensor, {parameter.placements}) would drift apart; leave it out"
            )


def take_step(
    optimizer: Optimizer,
    closure: Callable[[], Any] | None,
    rule: UpdateRule,
    plain: Callable[..., Any],
    rounded: Callable[[], None] | None = None,
) -> Any:
    """One step: in compiled kernels if they serve all of it, else by torch's own.

    Parameters
    ----------
    optimizer : Optimizer
    closure : callable, optional
        Called with gradients on, as torch's own steps do.
    rule : UpdateRule
    plain : callable (optimizer) -> None
        torch's own step.
    rounded : callable () -> None, optional
        The step with stochastic rounding, if the optimizer has that option.

    Returns
    -------
    What the closure gives.
    """
    # Asked here, since what follows a graph break may run uncompiled and call what is compiled.
    compiling = torch.compiler.is_compiling()
    loss = None
    if closure is not None:
        refuse_grad_scaler()
        with torch.enable_grad():
            loss = closure()
    if rounded is None or not cast(Any, optimizer).stochastic_rounding:
        if not take_fused_step(optimizer, rule):
            _refuse_fused(optimizer)
            _transform_now(optimizer)
            # Without the layer that runs hooks: they run around the caller's own step.
            inner = step_within_hooks(plain)
            if compiling or not _may_fuse(optimizer):
                inner(optimizer)
            else:
                _step_fused(optimizer, inner)
        return loss
    _transform_now(optimizer)
    rounded()
    return loss


def _may_fuse(optimizer: Optimizer) -> bool:
    """True if the variant is left open, and torch's fused one is right here.

    On a CPU torch never takes it by itself. Not for half precision, where torch's fused SGD leaves
    weights as they are on some processors.
    """
    groups = optimizer.param_groups
    return (
        own_attachment(optimizer) is not None
        and all(map(_is_left_open, groups))
        and all(_all_lies_alike(optimizer, p) for group in groups for p in group["params"])
        and all(len(set(group["params"])) == len(group["params"]) for group in groups)
        and all(_starts_together(optimizer, group) for group in groups)
    )


def _refuse_fused(optimizer: Optimizer) -> None:
    """Raise where ``fused=True`` asks for torch's fused kernel, and that would be wrong.

    It reads gradients and states as if they lay in memory as the weights do.

    Raises
    ------
    RuntimeError
    """
    if own_attachment(optimizer) is None:
        return
    for number, group in enumerate(optimizer.param_groups):
        if not group.get("fused"):
            continue
        for position, parameter in enumerate(group["params"]):
            if not _lies_in_one_order(optimizer, parameter):
                raise RuntimeError(
                    f"fused=True: the gradient or a state of parameter {position} of group "
                    f"{number} {tuple(parameter.shape)} lies in another memory order than the "
                    "weights, which torch's fused kernel would mix up; leave fused out, or set "
                    "group['fused'] = None"
                )


def _lies_in_one_order(optimizer: Optimizer, parameter: Tensor) -> bool:
    """True if gradient and states have the strides of a parameter, as far as they are dense."""
    others = [parameter.grad, *optimizer.state.get(parameter, {}).values()]
    shape = parameter.shape
    return parameter.grad is None or all(
        one == other
        for tensor in others
        if isinstance(tensor, Tensor) and tensor.layout == torch.strided and tensor.shape == shape
        # The stride of a dim of one element says nothing.
        for size, one, other in zip(shape, tensor.stride(), parameter.stride(), strict=True)
        if size > 1
    )


def _step_fused(optimizer: Optimizer, step: Callable[..., Any]) -> None:
    groups = optimizer.param_groups
    for group in groups:
        group["fused"] = True
    try:
        step(optimizer)
    finally:
        for group in groups:
            group["fused"] = None
            # torch's fused kernels do not say what they write.
            written = [p for p in group["params"] if p.grad is not None]
            torch.autograd.graph.increment_version(written)


def _is_left_open(group: dict[str, Any]) -> bool:
    return (
        "fused" in group
        and group["fused"] is None
        and group.get("foreach") is None
        and not group.get("capturable")
        and not group.get("differentiable")
        and all(
            p.device.type == "cpu" and p.dtype in (torch.float32, torch.float64)
            for p in group["params"]
        )
    )


def _starts_together(optimizer: Optimizer, group: dict[str, Any]) -> bool:
    """torch's fused SGD raises where some of a group have a momentum and others not."""
    initialized = {
        optimizer.state.get(p, {}).get("momentum_buffer") is not None
        for p in group["params"]
        if p.grad is not None
    }
    return len(initialized) < 2


def _all_lies_alike(optimizer: Optimizer, parameter: Tensor) -> bool:
    if parameter.grad is None:
        return True
    # torch's fused kernels walk over memory as if it had no gaps.
    if parameter.is_neg() or not is_dense(tuple(parameter.shape), parameter.stride()):
        return False
    state = optimizer.state.get(parameter, {})
    step = state.get("step")
    if isinstance(step, Tensor) and step.dtype != torch.float32:
        return False
    tensors = [v for name, v in state.items() if name != "step" and isinstance(v, Tensor)]
    return all(lies_as(parameter, tensor) for tensor in (parameter.grad, *tensors))


def shown(optimizer: Optimizer, rule: UpdateRule, text: str) -> str:
    """torch's representation of an optimizer, and what transform and kernel are at work."""
    attachment = own_attachment(optimizer)
    rounds = cast(Any, optimizer).stochastic_rounding
    first, _, rest = text.partition("\n")
    if attachment is None and not rounds:
        return f"{first}\n    transform: None\n{rest}"
    reason = why_not_fused(optimizer, rule, load=False)
    if rounds:
        kernel = "reference, with stochastic rounding"
    elif reason is None and optimizer.__dict__.get("_fused_step", ...) is None:
        kernel = "torch's, after the transform (gradients or states lie otherwise than weights)"
    elif reason is None:
        names = {name_on(p.device) for g in optimizer.param_groups for p in g["params"]}
        kernel = f"{', '.join(sorted(names))}, the transform within the update"
    else:
        kernel = f"torch's, after the transform ({reason})"
    transform = None if attachment is None else attachment.transform
    return f"{first}\n    transform: {transform!r}\n    kernel: {kernel}\n{rest}"


def _transform_now(optimizer: Optimizer) -> None:
    """Transform gradients in place, where a transform is attached."""
    attachment = own_attachment(optimizer)
    if attachment is not None and not attachment.by_hooks:
        # Outside of what torch.compile traces, as with any other optimizer.
        torch.compiler.disable(attachment.transform_gradients)()


def with_options(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """The pickled state of an optimizer, with the attributes that torch's own leaves out."""
    kept = ("stochastic_rounding", SCALED_BY_STEP)
    return {**state, **{n: optimizer.__dict__[n] for n in kept if n in optimizer.__dict__}}


def gradients_of(
    optimizer: Optimizer,
) -> Iterator[tuple[dict[str, Any], Tensor, Tensor, Tensor | None]]:
    """Group, parameter, gradient without a loss scale, and ``found_inf`` beside it."""
    scale = getattr(optimizer, "grad_scale", None)
    found_inf = getattr(optimizer, "found_inf", None)
    if found_inf is not None and found_inf.device.type == "cpu" and float(found_inf):
        return  # there is no device to wait for
    for group in optimizer.param_groups:
        _check_group(type(optimizer).__name__, group)  # a group may have been added
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is None:
                continue
            if gradient.is_sparse:
                raise RuntimeError(
                    f"{type(optimizer).__name__}: sparse gradients cannot be rounded "
                    "stochastically; make them dense (sparse=False)"
                )
            if scale is not None:
                gradient = gradient.float() / scale.to(gradient.device)
            here = None if found_inf is None else found_inf.to(gradient.device)
            yield group, parameter, gradient, here
