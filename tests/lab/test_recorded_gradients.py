"""The gradients of a real training, fed to every kernel: weights stay together, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import znorm
from znorm.kernels import registry
from znorm.lab import models, tasks
from znorm.lab.spec import resolve

pytest.importorskip("numba")

STEPS = 1000


def start() -> nn.Module:
    torch.manual_seed(0)
    return models.build("resnet20", channels=3, classes=2, image_size=32)


@pytest.fixture(scope="module")
def recorded() -> list[list[Tensor]]:
    """Of ResNet-20 on real patches, trained by ZNorm + Adam in float64, batches of 8."""
    spec = resolve({"device": "cpu"})
    part = tasks.load(spec.task, spec.data).train
    images = part.images.float() / 255
    images = (images - images.mean((0, 2, 3), keepdim=True)) / images.std((0, 2, 3), keepdim=True)
    model = start().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    znorm.attach(optimizer, znorm.ZNorm(), model=model)
    held = []
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        index = torch.randint(len(part), (8,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(images[index]), part.targets[index]).backward()
        held.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        optimizer.step()
    return held


def fed(
    gradients: list[list[Tensor]], make: Callable[[nn.Module], torch.optim.Optimizer], dtype: Any
) -> Iterator[list[Tensor]]:
    model = start().to(dtype)
    optimizer = make(model)
    for step in gradients:
        for p, g in zip(model.parameters(), step, strict=True):
            p.grad = g.to(dtype, copy=True)
        optimizer.step()
        yield [p.detach() for p in model.parameters()]


VARIANTS = (True, False)
UPDATES: dict[str, tuple[str, dict[str, Any]]] = {
    "adam": ("Adam", {"lr": 1e-3}),
    "adamw": ("AdamW", {"lr": 1e-3, "weight_decay": 1e-2}),
    "sgd": ("SGD", {"lr": 1e-3, "momentum": 0.9, "weight_decay": 1e-3}),
}


@pytest.mark.slow
@pytest.mark.parametrize("transform", [znorm.ZNorm(), znorm.Centralize()], ids=repr)
@pytest.mark.parametrize("update", UPDATES)
def test_a_thousand_gradients_of_a_training(
    update: str, transform: Any, recorded: list[list[Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels against reference kernels and torch's step: 1e-6 in norm, tensor by tensor."""
    name, options = UPDATES[update]

    def ours(model: nn.Module) -> torch.optim.Optimizer:
        kind = getattr(znorm.optim, name)
        optimizer: torch.optim.Optimizer = kind(
            model.parameters(), transform=transform, model=model, **options
        )
        return optimizer

    def attached(model: nn.Module, fused: bool = True) -> torch.optim.Optimizer:
        optimizer = getattr(torch.optim, name)(model.parameters(), fused=fused, **options)
        znorm.attach(optimizer, transform, model=model)
        return optimizer  # type: ignore[no-any-return]

    def last(make: Any, dtype: Any, kernel: str) -> list[Tensor]:
        with monkeypatch.context() as patch:
            if kernel == "reference":
                patch.setattr(registry, "backend_for", lambda kind="cpu": None)
            *_, weights = fed(recorded, make, dtype)
        return weights

    exact = last(ours, torch.float64, "reference")
    torchs = [
        last(partial(attached, fused=fused), torch.float32, "reference") for fused in VARIANTS
    ]
    theirs = max(max(map(apart, one, exact, exact)) for one in torchs)
    for make, kernel in [(ours, "cpu"), (attached, "cpu"), (ours, "reference")]:
        found = last(make, torch.float32, kernel)
        # torch's own variants are up to 1.5e-6 apart, in a bias of two elements.
        near = min(max(map(apart, found, one, exact)) for one in torchs)
        assert near <= 1e-6, (make.__name__, kernel)
        # In float32 all drift from float64 by up to 3e-5.
        assert max(map(apart, found, exact, exact)) <= 1.2 * theirs, (make.__name__, kernel)


def apart(one: Tensor, other: Tensor, exact: Tensor) -> float:
    return float((one.double() - other.double()).norm() / exact.norm())
