"""Algorithm 1 written out, znorm.optim and attach: the same weights."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import znorm


def net() -> nn.Module:
    """Conv, transposed conv, normalization and linear layers in float64.

    No bias ahead of a normalization: its gradient is rounding noise, which a z-score would blow up.
    """
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.ConvTranspose2d(6, 4, 2, stride=2, bias=False),
        nn.GroupNorm(2, 4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 8 * 8, 5),
    ).double()


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(8, 2, 4, 4, generator=generator, dtype=torch.float64)
    return images, torch.randint(5, (8,), generator=generator)


def backward(model: nn.Module, step: int) -> Tensor:
    images, labels = batch(step)
    model.zero_grad()
    loss = nn.functional.cross_entropy(model(images), labels)
    loss.backward()
    return loss


def algorithm_1(model: nn.Module, steps: int, alpha: float = 1e-3) -> None:
    """The paper's Algorithm 1, in its own symbols."""
    beta1, beta2, eps, eps_adam = 0.9, 0.999, 1e-10, 1e-8
    weights = list(model.parameters())
    m = [torch.zeros_like(w) for w in weights]
    v = [torch.zeros_like(w) for w in weights]
    for t in range(1, steps + 1):
        backward(model, t)
        for i, w in enumerate(weights):
            assert w.grad is not None
            g = w.grad
            if w.dim() >= 2:
                mu = g.mean()
                sigma = (g - mu).square().mean().sqrt()
                g = (g - mu) / (sigma + eps)
            m[i] = beta1 * m[i] + (1 - beta1) * g
            v[i] = beta2 * v[i] + (1 - beta2) * g**2
            m_hat, v_hat = m[i] / (1 - beta1**t), v[i] / (1 - beta2**t)
            with torch.no_grad():
                w -= alpha * m_hat / (v_hat.sqrt() + eps_adam)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for t in range(1, steps + 1):
        backward(model, t)
        optimizer.step()


def attached(**options: bool) -> Callable[[nn.Module], torch.optim.Optimizer]:
    def make(model: nn.Module) -> torch.optim.Optimizer:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, **options)
        znorm.attach(optimizer, znorm.ZNorm(), model=model)
        return optimizer

    return make


@pytest.mark.parametrize(
    "make",
    [
        lambda model: znorm.optim.Adam(model.parameters(), transform=znorm.ZNorm(), model=model),
        attached(foreach=False),
        attached(foreach=True),
        attached(fused=True),
    ],
    ids=["znorm.optim", "plain", "foreach", "fused"],
)
def test_200_steps_equal_algorithm_1(make: Callable[[nn.Module], torch.optim.Optimizer]) -> None:
    expected, model = net(), net()
    algorithm_1(expected, 200)
    train(model, make(model), 200)
    start = net()
    for (name, want), have, begin in zip(
        expected.named_parameters(), model.parameters(), start.parameters(), strict=True
    ):
        assert (want - have).abs().max() <= 1e-9, name
        assert (want - begin).abs().max() > 1e-3, name


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_without_a_transform_it_is_torch_to_the_bit(name: str) -> None:
    ours, theirs = net(), net()
    train(ours, getattr(znorm.optim, name)(ours.parameters(), lr=1e-3), 5)
    train(theirs, getattr(torch.optim, name)(theirs.parameters(), lr=1e-3), 5)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)


def test_adamw_decays_weights_beside_the_transform() -> None:
    model = net()
    optimizer = znorm.optim.AdamW(
        model.parameters(), lr=1e-2, weight_decay=0.1, transform=znorm.ZNorm(), model=model
    )
    other = net()
    attached_to = torch.optim.AdamW(other.parameters(), lr=1e-2, weight_decay=0.1, fused=True)
    znorm.attach(attached_to, znorm.ZNorm(), model=other)
    train(model, optimizer, 10)
    train(other, attached_to, 10)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("ours_first", [True, False])
def test_a_checkpoint_of_torch_loads_into_ours_and_back(ours_first: bool) -> None:
    def make(model: nn.Module, ours: bool) -> torch.optim.Optimizer:
        if ours:
            return znorm.optim.Adam(model.parameters(), transform=znorm.ZNorm(), model=model)
        return attached(foreach=True)(model)

    undisturbed = net()
    train(undisturbed, make(undisturbed, True), 6)
    model = net()
    first = make(model, ours_first)
    train(model, first, 3)
    state = copy.deepcopy(first.state_dict())
    assert set(state) == {"state", "param_groups"}
    plain = torch.optim.Adam(net().parameters()).state_dict()
    assert state["param_groups"][0].keys() == plain["param_groups"][0].keys()
    resumed = net()
    resumed.load_state_dict(model.state_dict())
    second = make(resumed, not ours_first)
    second.load_state_dict(state)
    for t in range(4, 7):
        backward(resumed, t)
        second.step()
    for one, other in zip(undisturbed.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_hooks_of_the_user_run_once_a_step() -> None:
    torch.optim.Adam(net().parameters())  # torch patches the step of each class it instantiates
    model = net()
    optimizer = znorm.optim.Adam(model.parameters(), transform=znorm.ZNorm())
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    train(model, optimizer, 1)
    assert calls == ["before", "after"]
