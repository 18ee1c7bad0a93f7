"""The hooks and arguments of a user's own step stay what they were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

import znorm
from kit import net


def backward(model: nn.Module) -> None:
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(1))
    (model(x) - 1).square().mean().backward()


def calls(optimizer: Optimizer) -> int:
    """How often a hook of the user's runs in one step."""
    ran: list[int] = []
    handle = optimizer.register_step_post_hook(lambda *_: ran.append(1))
    optimizer.step()
    handle.remove()
    return len(ran)


def subclass(parent: Any) -> Any:
    class Once(parent):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    class Twice(Once):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    return Twice


def fresh() -> Any:
    """A class of its own: torch hooks the step of a class for good once it has made one of it."""

    class Fresh(Optimizer):
        def __init__(self, parameters: Any, lr: float = 0.1) -> None:
            super().__init__(parameters, {"lr": lr})

        @torch.no_grad()
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            for group in self.param_groups:
                for p in group["params"]:
                    p.sub_(p.grad, alpha=group["lr"])

    return Fresh


@pytest.mark.parametrize("transform", [znorm.ZNorm(), None], ids=repr)
def test_hooks_of_ones_own_run_once_whatever_is_attached(transform: Any) -> None:
    kind = subclass(fresh())
    model, other = net(2), net(2)
    optimizer, bystander = kind(model.parameters()), kind(other.parameters())
    for each in (model, other):
        backward(each)
    assert (calls(optimizer), calls(bystander)) == (1, 1)
    attachment = znorm.attach(optimizer, transform)
    assert (calls(optimizer), calls(bystander)) == (1, 1)
    attachment.detach()
    assert (calls(optimizer), calls(bystander)) == (1, 1)


def test_hooks_of_a_subclass_of_znorm_optim_run_once() -> None:
    model = net(2)
    optimizer = subclass(znorm.optim.SGD)(model.parameters(), lr=0.1, transform=znorm.ZNorm())
    backward(model)
    # torch itself hooks the step of a class that it has made one of: as often as without.
    plain = subclass(znorm.optim.SGD)(net(2).parameters(), lr=0.1)
    assert calls(optimizer) == calls(plain)


def test_the_step_of_a_parent_called_past_ones_own_is_transformed() -> None:
    parent = fresh()

    class Child(parent):
        def step(self, closure: Any = None) -> Any:
            raise AssertionError("not called")

    model = net(2)
    optimizer = Child(model.parameters(), lr=0.1)
    attachment = znorm.attach(optimizer, znorm.ZNorm(), model=model)
    for steps in (1, 2):
        backward(model)
        parent.step(optimizer)
        assert attachment.receipt()["0.weight"]["steps"] == steps
        assert float(model[0].weight.grad.std(correction=0)) == pytest.approx(1, rel=1e-4)


class WithNoise(SGD):
    def step(self, closure: Any = None, *, noise: Callable[[], None] | None = None) -> None:  # type: ignore[override]
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p.sub_(p.grad, alpha=group["lr"])
        if noise:
            noise()


@pytest.mark.parametrize("arguments", [{}, {"noise": lambda: None}], ids=["plain", "function"])
def test_a_function_that_is_not_the_closure_does_not_delay_the_transform(
    arguments: dict[str, Any],
) -> None:
    model = net(2)
    optimizer = WithNoise(model.parameters(), lr=0.1)
    attachment = znorm.attach(optimizer, znorm.ZNorm(), model=model)
    backward(model)
    before = model[0].weight.detach().clone()
    optimizer.step(**arguments)
    moved: Tensor = (before - model[0].weight.detach()) / 0.1
    assert float(moved.std(correction=0)) == pytest.approx(1, rel=1e-4)
    assert attachment.receipt()["0.weight"]["steps"] == 1
