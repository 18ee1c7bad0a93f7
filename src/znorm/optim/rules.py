"""Update rules as data: what kernels need to know of Adam and of SGD."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from znorm.kernels.base import Trial, UpdateRule

__all__ = ["ADAM", "ADAMW", "SGD", "init_adam_state", "is_decoupled"]


def init_adam_state(state: dict[str, Any], parameter: Tensor, amsgrad: bool) -> None:
    """Fill an empty state as torch's own, so that checkpoints load into either."""
    state["step"] = torch.tensor(0.0, dtype=torch.float32, device="cpu")
    state["exp_avg"] = torch.zeros_like(parameter)
    state["exp_avg_sq"] = torch.zeros_like(parameter)
    if amsgrad:
        state["max_exp_avg_sq"] = torch.zeros_like(parameter)


def is_decoupled(group: dict[str, Any], default: bool) -> bool:
    """True if a group's weight decay is AdamW's; torch 2.6 has no such option, but two classes."""
    return bool(group.get("decoupled_weight_decay", default))


def _init_adam(group: dict[str, Any], state: dict[str, Any], parameter: Tensor) -> bool:
    initialized = bool(state)
    if not initialized:
        init_adam_state(state, parameter, group["amsgrad"])
    # Beside the parameter, as with torch's fused step: no device is waited for.
    state["step"] = state["step"].to(parameter.device)
    return initialized


def _adam(group: dict[str, Any], *, decoupled: bool) -> list[Any]:
    beta1, beta2 = group["betas"]  # as torch's own step, which raises for any other number of them
    return [
        group["lr"],
        beta1,
        beta2,
        group["eps"],
        group["weight_decay"],
        is_decoupled(group, decoupled),
        group["maximize"],
    ]


def _init_sgd(group: dict[str, Any], state: dict[str, Any], parameter: Tensor) -> bool:
    initialized = state.get("momentum_buffer") is not None
    if group["momentum"] and not initialized:
        state["momentum_buffer"] = torch.zeros_like(parameter)
    return initialized


def _sgd(group: dict[str, Any]) -> list[Any]:
    names = ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize")
    return [group[name] for name in names]


_Hyperparameters = Callable[[dict[str, Any]], list[Any]]


def _adam_rule(hyperparameters: _Hyperparameters) -> UpdateRule:
    return UpdateRule(
        name="adam",
        state_names=("exp_avg", "exp_avg_sq"),
        counts_steps=True,
        init_state=_init_adam,
        hyperparameters=hyperparameters,
        # Without averages a step is g / (|g| + eps).
        trial=Trial(
            group={
                "lr": 1.0,
                "betas": (0.0, 0.0),
                "eps": 2.0,
                "weight_decay": 0.0,
                "amsgrad": False,
                "maximize": False,
            },
            gradient=(2.0, -2.0, 6.0, 14.0),
            weights=(-0.5, 0.5, -0.75, -0.875),
        ),
    )


# lr, beta1, beta2, eps, weight decay, whether that is decoupled, whether to maximize.
ADAM = _adam_rule(partial(_adam, decoupled=False))
ADAMW = _adam_rule(partial(_adam, decoupled=True))

# lr, momentum, dampening, weight decay, whether momentum is Nesterov's, whether to maximize.
SGD = UpdateRule(
    name="sgd",
    state_names=("momentum_buffer",),
    counts_steps=False,
    init_state=_init_sgd,
    hyperparameters=_sgd,
    keeps_state=lambda group: group["momentum"] != 0,
    # The first step sets the buffer to the gradient: with Nesterov's momentum a step is 1.5 g.
    trial=Trial(
        group={
            "lr": 2.0,
            "momentum": 0.5,
            "dampening": 0.0,
            "weight_decay": 0.0,
            "nesterov": True,
            "maximize": False,
        },
        gradient=(2.0, -2.0, 6.0, 14.0),
        weights=(-6.0, 6.0, -18.0, -42.0),
    ),
)
