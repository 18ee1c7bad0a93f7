"""What several tests build on: a small net, every update rule, every transform, a step of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import znorm

DTYPES = [torch.float32, torch.bfloat16, torch.float16]

# Each way in which an update rule's numbers enter its kernels.
UPDATES: dict[str, tuple[Any, dict[str, Any]]] = {
    "adam": (znorm.optim.Adam, {"lr": 1e-2}),
    "adam, decay": (znorm.optim.Adam, {"lr": 1e-2, "weight_decay": 0.1, "betas": (0.8, 0.9)}),
    "adam, maximize": (znorm.optim.Adam, {"lr": torch.tensor(1e-2), "maximize": True}),
    "adamw": (znorm.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.1}),
    "sgd": (znorm.optim.SGD, {"lr": 0.1, "weight_decay": 0.1}),
    "sgd, momentum": (znorm.optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.2}),
    "sgd, nesterov": (
        znorm.optim.SGD,
        {"lr": 0.1, "momentum": 0.9, "nesterov": True, "maximize": True},
    ),
}

# Each way in which kernels are told what to do with a gradient.
TRANSFORMS: dict[str, Any] = {
    "znorm": znorm.ZNorm(),
    "sample, all": znorm.ZNorm(correction=1, select="all"),
    "center": znorm.ZNorm(scale=False),
    "scale": znorm.ZNorm(center=False),
    "channel": znorm.ZNorm(granularity="channel"),
    "chain": znorm.chain(znorm.Centralize(), znorm.ClipGlobalNorm(1.0)),
    "adaptive": znorm.AdaptiveClip(0.05),
    "layers": znorm.ZNorm(
        select=[(lambda n, p: p.dim() == 2, znorm.Layers(1)), (lambda n, p: True, False)]
    ),
}


def net(outputs: int = 1) -> nn.Sequential:
    """Two layers for rows of 6, the same weights each time."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, outputs))


def images() -> Tensor:
    """16 rows for `net`."""
    return torch.randn(16, 6, generator=torch.Generator().manual_seed(1))


def on(options: dict[str, Any], device: Any) -> dict[str, Any]:
    """An optimizer's options with tensors of their own, on a device."""
    return {
        name: value.clone().to(device) if isinstance(value, Tensor) else value
        for name, value in options.items()
    }


def made(
    make: Any,
    options: dict[str, Any],
    shapes: Sequence[tuple[int, ...]],
    dtype: torch.dtype,
    device: Any = "cpu",
    **more: Any,
) -> tuple[list[nn.Parameter], Any]:
    """Parameters of these shapes, the same numbers each time, and their optimizer."""
    generator = torch.Generator().manual_seed(0)
    parameters = [
        nn.Parameter(torch.randn(shape, generator=generator).to(device, dtype)) for shape in shapes
    ]
    return parameters, make(parameters, **on(options, device), **more)


def gradients(parameters: Sequence[nn.Parameter], step: int) -> list[Tensor]:
    """Gradients that are not centered, the same in each step of that number."""
    generator = torch.Generator().manual_seed(step + 1)
    return [
        (0.01 * torch.randn(p.shape, generator=generator) + 0.003).to(p.device, p.dtype)
        for p in parameters
    ]


def step(optimizer: Any, parameters: Sequence[nn.Parameter], number: int) -> None:
    """Take the step of that number."""
    for parameter, gradient in zip(parameters, gradients(parameters, number), strict=True):
        parameter.grad = gradient
    optimizer.step()


def is_fused(optimizer: Any) -> bool:
    """Whether the last step had the transform within the update kernel."""
    return optimizer.__dict__.get("_fused_step") is not None
