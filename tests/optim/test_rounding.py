"""Stochastic rounding: unbiased, repeatable, and beside torch's own step in float32."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import znorm
from kit import UPDATES
from znorm.kernels.rounding import store_

MAKERS = UPDATES | {
    "adam, amsgrad, decay": (
        znorm.optim.Adam,
        {"lr": 1e-2, "amsgrad": True, "weight_decay": 0.1, "betas": (0.8, 0.9)},
    ),
}


def test_the_mean_of_what_is_stored_is_what_was_given() -> None:
    torch.manual_seed(0)
    # Steps of bfloat16 are 2^-8 of the leading power of two here.
    given = torch.tensor([1.001, -1.001, 1.0, 3.0e-5, -250.3, 1.0039]).repeat(20000, 1)
    stored = torch.zeros_like(given, dtype=torch.bfloat16)
    store_(stored, given)
    low = (given.view(torch.int32) & -(1 << 16)).view(torch.float32)
    high = ((given.view(torch.int32) & -(1 << 16)) + (1 << 16)).view(torch.float32)
    assert ((stored.float() == low) | (stored.float() == high)).all()
    step = (high - low)[0].double().abs()
    # Of 20,000 draws the mean is within 5 standard errors, each of at most step / 2 / sqrt(20000).
    error = (stored.double().mean(0) - given[0].double()).abs()
    assert (error <= 5 * step / 2 / 20000**0.5).all()
    assert (stored[:, 2] == 1.0).all()


def test_what_is_not_finite_stays_what_it_is() -> None:
    odd = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, -0.0, 3.3895e38])
    # A NaN of all ones would wrap around to zero if bits were added to it.
    odd = torch.cat([odd, torch.tensor([0x7FFFFFFF, -1], dtype=torch.int32).view(torch.float32)])
    for _ in range(20):
        stored = torch.zeros(len(odd), dtype=torch.bfloat16)
        store_(stored, odd)
        assert stored[:2].tolist() == [torch.inf, -torch.inf]
        assert stored[[2, 6, 7]].isnan().all()
        assert stored[3:5].tolist() == [0, 0]
        assert stored[5] > 3.3e38
    wide = torch.zeros(1)
    store_(wide, torch.tensor([1.0000001]))
    assert wide.item() == torch.tensor(1.0000001).item()


@pytest.mark.parametrize("name", MAKERS)
def test_in_float32_it_is_torchs_step(name: str) -> None:
    make, options = MAKERS[name]
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(7, 5, generator=generator)
    ours, theirs = (nn.Parameter(weights.clone()) for _ in range(2))
    ours.grad = theirs.grad = None
    first = make([ours], transform=znorm.ZNorm(), stochastic_rounding=True, **options)
    second = make([theirs], transform=znorm.ZNorm(), **options)
    for _ in range(6):
        gradient = torch.randn(7, 5, generator=generator) + 0.5
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        first.step()
        second.step()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)
    assert first.state_dict()["state"].keys() == second.state_dict()["state"].keys()
    assert first.state_dict()["param_groups"] == second.state_dict()["param_groups"]
    for key, value in second.state_dict()["state"].get(0, {}).items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(first.state_dict()["state"][0][key], value)


@pytest.mark.parametrize("name", MAKERS)
def test_bfloat16_is_within_a_rounding_of_the_step_in_float32(name: str) -> None:
    make, options = MAKERS[name]
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(64, 32, generator=generator).bfloat16()
    gradient = torch.randn(64, 32, generator=generator).bfloat16()
    ours, wide = nn.Parameter(weights.clone()), nn.Parameter(weights.float())
    ours.grad, wide.grad = gradient, gradient.float()
    make([ours], stochastic_rounding=True, **options).step()
    make([wide], **options).step()
    # Where weight and update cancel, float32 itself is not better than 1e-7.
    assert ((ours.float() - wide).abs() <= 2**-7 * wide.abs() + 1e-7).all()
    # Up or down, on the average right: the standard error of the mean is a small part of a step.
    bias = ((ours.double() - wide.double()) / (wide.double().abs() + 1e-3)).mean().abs()
    assert bias <= 5 * 2**-8 / 3**0.5 / 2048**0.5


def test_small_updates_are_not_lost() -> None:
    """A thousand steps of 1/2000 of a weight's distance to the next bfloat16, and its neighbour."""
    torch.manual_seed(0)
    weights = torch.ones(4096, dtype=torch.bfloat16)
    for rounds in (False, True):
        parameter = nn.Parameter(weights.clone())
        optimizer = znorm.optim.SGD([parameter], lr=1e-6, stochastic_rounding=rounds)
        for _ in range(1000):
            parameter.grad = -torch.ones_like(parameter)
            optimizer.step()
        moved = float(parameter.double().mean()) - 1
        # 1000 steps of 1e-6; rounded to nearest each is lost.
        assert moved == (pytest.approx(1e-3, rel=0.1) if rounds else 0.0)


def test_the_seed_repeats_it_and_another_seed_does_not() -> None:
    def train(seed: int) -> Tensor:
        torch.manual_seed(seed)
        parameter = nn.Parameter(torch.ones(512, dtype=torch.bfloat16))
        optimizer = znorm.optim.AdamW([parameter], stochastic_rounding=True)
        parameter.grad = torch.linspace(-1, 1, 512).bfloat16()
        optimizer.step()
        return parameter.detach()

    assert torch.equal(train(0), train(0))
    assert not torch.equal(train(0), train(1))


@pytest.mark.parametrize("overflow", [None, 0, 1])
def test_under_grad_scaler_nothing_is_waited_for_and_overflow_changes_nothing(
    overflow: int | None,
) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(8, 4, generator=generator)
    gradient = torch.randn(8, 4, generator=generator)
    for transform in (None, znorm.ZNorm()):
        for make in (znorm.optim.Adam, znorm.optim.SGD):
            plain, scaled = (nn.Parameter(weights.clone()) for _ in range(2))
            options = {"momentum": 0.9, "dampening": 0.5} if make is znorm.optim.SGD else {}
            first, second = (
                make([p], transform=transform, stochastic_rounding=True, **options)
                for p in (plain, scaled)
            )
            scaler = torch.amp.GradScaler("cpu", init_scale=4096.0)
            for step in range(3):
                bad = step == overflow
                plain.grad = gradient.clone()
                scaled.grad = gradient * scaler.scale(torch.ones(()))
                if bad:
                    scaled.grad[0, 0] = torch.inf
                else:
                    first.step()
                scaler.step(second)
                scaler.update(4096.0)
            torch.testing.assert_close(plain, scaled, rtol=1e-6, atol=1e-7)
            for key, value in first.state[plain].items():
                torch.testing.assert_close(second.state[scaled][key], value)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
@pytest.mark.parametrize("transform", [None, znorm.ZNorm()], ids=str)
def test_copies_keep_it(how: Any, transform: Any) -> None:
    parameter = nn.Parameter(torch.ones(16, 16, dtype=torch.bfloat16))
    optimizer = znorm.optim.Adam([parameter], transform=transform, stochastic_rounding=True)
    twin = how(optimizer)
    (copied,) = twin.param_groups[0]["params"]
    for one, p in ((optimizer, parameter), (twin, copied)):
        torch.manual_seed(3)
        p.grad = torch.linspace(-1, 1, 256).reshape(16, 16).bfloat16()
        one.step()
    assert twin.stochastic_rounding
    assert twin._step_supports_amp_scaling  # else GradScaler waits for the device
    assert torch.equal(parameter, copied)


def test_closures_and_hooks_run_once() -> None:
    torch.optim.SGD([nn.Parameter(torch.zeros(1))])  # torch patches the step of what it makes
    calls: list[str] = []
    for rounds in (False, True):
        parameter = nn.Parameter(torch.ones(4, 4))
        optimizer = znorm.optim.SGD(
            [parameter], transform=znorm.ZNorm(), stochastic_rounding=rounds
        )
        optimizer.register_step_pre_hook(lambda *_: calls.append("before"))

        def closure(p: nn.Parameter = parameter) -> Tensor:
            calls.append("closure")
            p.grad = torch.randn(4, 4)
            assert torch.is_grad_enabled()
            return torch.tensor(2.0)

        assert float(optimizer.step(closure)) == 2.0
    assert calls == ["before", "closure"] * 2


def test_what_cannot_round_is_refused() -> None:
    weight = nn.Parameter(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="Adam: fused=True cannot round stochastically"):
        znorm.optim.Adam([weight], fused=True, stochastic_rounding=True)
    with pytest.raises(TypeError, match="SGD: stochastic_rounding must be True or False"):
        znorm.optim.SGD([weight], stochastic_rounding=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"AdamW: stochastic_rounding is for bfloat16 .*float16"):
        znorm.optim.AdamW([nn.Parameter(torch.zeros(2).half())], stochastic_rounding=True)
    late = znorm.optim.SGD([nn.Parameter(torch.zeros(2).bfloat16())], stochastic_rounding=True)
    half = nn.Parameter(torch.zeros(2).half())
    late.add_param_group({"params": [half]})
    half.grad = torch.ones_like(half)
    with pytest.raises(TypeError, match=r"SGD: stochastic_rounding is for bfloat16 .*float16"):
        late.step()
    embedding = nn.Embedding(4, 2, sparse=True)
    optimizer = znorm.optim.SGD(embedding.parameters(), stochastic_rounding=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="SGD: sparse gradients cannot be rounded"):
        optimizer.step()
