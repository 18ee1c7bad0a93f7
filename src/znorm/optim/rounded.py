"""What the steps with stochastic rounding share: the option, and the gradients to step on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from znorm.attachment import attachment_of, refuse_grad_scaler
from znorm.transforms.arguments import check_flag

__all__ = ["gradients_of", "loss_of", "prepare", "transform_now", "without_hooks"]

_VARIANTS = ("foreach", "fused", "capturable", "differentiable")


def prepare(optimizer: Optimizer, stochastic_rounding: bool) -> None:
    """Set the option on an optimizer.

    Raises
    ------
    TypeError, ValueError
        If it is no flag; if a variant of torch's is asked for, none of which rounds so.
    """
    name = type(optimizer).__name__
    check_flag(name, "stochastic_rounding", stochastic_rounding)
    cast(Any, optimizer).stochastic_rounding = stochastic_rounding
    if not stochastic_rounding:
        return
    for group in optimizer.param_groups:
        _check_group(name, group)
    # GradScaler then neither unscales nor waits: both are done on the device, here.
    cast(Any, optimizer)._step_supports_amp_scaling = True


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


def without_hooks(step: Callable[..., Any]) -> Callable[..., Any]:
    """torch's step without the layer that runs hooks: they have run around the caller's own."""
    return cast(Any, step).__wrapped__ if getattr(step, "hooked", False) else step


def transform_now(optimizer: Optimizer) -> None:
    """Transform gradients in place, where a transform is attached."""
    attachment = attachment_of(optimizer)
    if attachment is not None:
        # Outside of what torch.compile traces, as with any other optimizer.
        torch.compiler.disable(attachment.transform_gradients)()


def loss_of(closure: Callable[[], Any] | None) -> Any:
    """What the closure gives, called with gradients on, as torch's own steps do."""
    if closure is None:
        return None
    refuse_grad_scaler()
    with torch.enable_grad():
        return closure()


def gradients_of(
    optimizer: Optimizer,
) -> Iterator[tuple[dict[str, Any], Tensor, Tensor, Tensor | None]]:
    """Group, parameter, gradient without a loss scale, and what tells to skip the step."""
    scale = getattr(optimizer, "grad_scale", None)
    skip = getattr(optimizer, "found_inf", None)
    if skip is not None and skip.device.type == "cpu" and float(skip):
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
            yield group, parameter, gradient, None if skip is None else skip.to(gradient.device)
