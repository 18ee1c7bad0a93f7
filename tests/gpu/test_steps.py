"""One step by the GPU kernels against float64."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kit
import oracle
import znorm
from kit import DTYPES, gradients, made, on, step

pytestmark = pytest.mark.gpu

# Without a first average the step is that of the gradient alone.
UPDATES = kit.UPDATES | {
    "adam, decay": (znorm.optim.Adam, {"lr": 1e-2, "weight_decay": 0.1, "betas": (0.0, 0.9)}),
}
TRANSFORMS = kit.TRANSFORMS | {"unit": znorm.UnitNorm()}
SHAPES = [(1,), (7,), (1, 3), (5, 7), (9, 3, 3, 3), (129, 257)]


def is_fused(optimizer: Any) -> bool:
    fused = optimizer.__dict__.get("_fused_step")
    return fused is not None and {type(batch).__module__ for batch in fused.batches} == {
        "znorm.kernels.triton.batch"
    }


CASES = [(update, "znorm", dtype) for update in UPDATES for dtype in DTYPES]
CASES += [("adam, decay", transform, torch.float32) for transform in TRANSFORMS]
CASES += [("sgd, momentum", transform, torch.bfloat16) for transform in TRANSFORMS]


@pytest.mark.parametrize(("update", "transform", "dtype"), CASES, ids=str)
def test_steps_from_given_states_against_float64(
    device: torch.device, update: str, transform: str, dtype: torch.dtype
) -> None:
    """Each step starts anew from the kernel's own weights and state, widened."""
    make, options = UPDATES[update]
    parameters, optimizer = made(
        make, options, SHAPES, dtype, device, transform=TRANSFORMS[transform]
    )
    differ, total = [0, 0], [0, 0]  # states, weights
    for number in range(2):
        wide = [nn.Parameter(p.detach().double()) for p in parameters]
        reference = make(wide, **on(options, device), transform=TRANSFORMS[transform])
        reference.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        step(optimizer, parameters, number)
        for p, g in zip(wide, gradients(parameters, number), strict=True):
            p.grad = g.double()
        reference.step()
        assert is_fused(optimizer)
        assert not is_fused(reference)
        for p, q in zip(parameters, wide, strict=True):
            for found, expected in [
                (p, q),
                *(
                    (value, reference.state[q][key])
                    for key, value in optimizer.state[p].items()
                    if isinstance(value, Tensor) and isinstance(reference.state[q][key], Tensor)
                ),
            ]:
                expected = expected.detach().to(device)
                if dtype == torch.float32:
                    error = (found.detach().double() - expected.double()).abs().max()
                    assert error <= 1e-6 * max(float(expected.abs().max()), 1e-3)
                else:
                    wrong = int((found.detach() != expected.to(found.dtype)).sum())
                    differ[found is p] += wrong
                    total[found is p] += found.numel()
        for p, g in zip(parameters, gradients(parameters, number), strict=True):
            assert p.grad is not None
            assert torch.equal(p.grad, g)  # read, not written
    # float64 rounded once; where float32 stands near a tie it can fall the other way.
    assert differ[1] <= 1e-3 * total[1]
    assert differ[0] <= 2e-3 * total[0]


@pytest.mark.parametrize("size", [1, 2, 1023, 1024, 1025, 16_385, 131_073, 300_007, 1_000_000])
@pytest.mark.parametrize("ratio", [0.0, 1e4])
def test_sizes(device: torch.device, size: int, ratio: float) -> None:
    parameters, optimizer = made(
        znorm.optim.SGD, {"lr": 1.0}, [(size,)], torch.float32, device,
        transform=znorm.ZNorm(select="all"),
    )  # fmt: skip
    before = parameters[0].detach().double()
    generator = torch.Generator().manual_seed(size)
    noise = torch.randn(size, generator=generator, dtype=torch.float64)
    raw = (1e-3 * (noise + ratio)).float()
    parameters[0].grad = raw.to(device)
    optimizer.step()
    assert is_fused(optimizer)
    wide = raw.double()
    mean = math.fsum(raw.tolist()) / size
    deviation = wide - mean
    g_hat = deviation / (deviation.square().mean().sqrt() + 1e-10) if size > 1 else wide
    expected = before - g_hat.to(device)
    found = parameters[0].detach().double()
    assert (found - expected).abs().max() <= 1e-6 * max(1.0, float(expected.abs().max()))


def test_a_piece_that_begins_in_the_middle_of_a_channel(device: torch.device) -> None:
    (parameter,), optimizer = made(
        torch.optim.SGD, {"lr": 1.0}, [(140, 1001)], torch.float32, device
    )
    znorm.attach(optimizer, znorm.ZNorm(granularity="channel"))
    (raw,) = gradients([parameter], 0)
    raw = raw + torch.arange(140.0, device=device)[:, None]  # channels that differ
    parameter.grad = raw.clone()
    optimizer.step()
    wide = raw.double()
    deviation = wide - wide.mean(1, keepdim=True)
    expected = deviation / deviation.square().mean(1, keepdim=True).sqrt()
    assert (parameter.grad.double() - expected).abs().max() <= 3e-7 * expected.abs().max()


def test_twenty_million_elements(device: torch.device) -> None:
    parameters, optimizer = made(
        znorm.optim.SGD, {"lr": 1.0}, [(4001, 4999)], torch.float32, device,
        transform=znorm.ZNorm(),
    )  # fmt: skip
    before = parameters[0].detach().double()
    step(optimizer, parameters, 0)
    (raw,) = gradients(parameters, 0)
    wide = raw.double()
    g_hat = (wide - wide.mean()) / (wide.var(correction=0).sqrt() + 1e-10)
    expected = before - g_hat
    found = parameters[0].detach().double()
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()


@pytest.mark.parametrize("transform", ["znorm", "chain"])
def test_the_same_bits_on_every_run(device: torch.device, transform: str) -> None:
    runs = []
    for _ in range(2):
        parameters, optimizer = made(
            znorm.optim.Adam, {}, [(60, 451), (3, 90_001), (9,)], torch.float32, device,
            transform=TRANSFORMS[transform],
        )  # fmt: skip
        for number in range(2):
            step(optimizer, parameters, number)
        runs.append([p.detach() for p in parameters])
    assert all(map(torch.equal, *runs))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.SGD])
def test_attached_it_is_applied_in_place(
    device: torch.device, make: Any, dtype: torch.dtype
) -> None:
    parameters, optimizer = made(make, {"lr": 0.1}, SHAPES, dtype, device)
    attachment = znorm.attach(optimizer, znorm.ZNorm())
    raw = gradients(parameters, 0)
    step(optimizer, parameters, 0)
    for p, g in zip(parameters, raw, strict=True):
        expected = g.double()
        if p.dim() > 1:
            expected = oracle.whole(oracle.z_score, g).to(device)
        assert p.grad is not None
        if dtype == torch.float32:
            assert (p.grad.double() - expected).abs().max() <= 3e-7 * expected.abs().max()
        else:
            assert (p.grad != expected.to(dtype)).double().mean() <= 1e-3
    found = attachment.receipt()["group 0, parameter 4 (9, 3, 3, 3)"]
    mean, std = oracle.moments(raw[4].double().flatten().tolist())
    assert found["mean"] == pytest.approx(mean, rel=1e-9)
    assert found["std"] == pytest.approx(std, rel=1e-9)
    assert found["norm_after"] == pytest.approx(math.sqrt(9 * 27), rel=1e-6)
    assert found["steps"] == 1


def test_a_receipt_is_that_of_the_reference(device: torch.device) -> None:
    found = []
    for dtype in (torch.float32, torch.float64):
        parameters, optimizer = made(
            znorm.optim.Adam, {}, [(5, 7), (40, 9)], dtype, device, transform=znorm.ZNorm()
        )
        for number in range(2):
            for p, g in zip(parameters, gradients(parameters, number), strict=True):
                p.grad = g.float().to(dtype)
            optimizer.step()
        assert is_fused(optimizer) == (dtype == torch.float32)
        found.append(optimizer.attachment.receipt())
    assert found[0].keys() == found[1].keys()
    for one, other in zip(found[0].values(), found[1].values(), strict=True):
        assert one == pytest.approx(other, rel=1e-7)


@pytest.mark.parametrize("update", ["adamw", "sgd, momentum"])
@pytest.mark.parametrize("transform", ["znorm", "chain"])
def test_loss_scale_and_overflow_are_read_on_the_device(
    device: torch.device, update: str, transform: str
) -> None:
    make, options = UPDATES[update]
    found = []
    for scaled in (True, False):
        parameters, optimizer = made(
            make, options, SHAPES, torch.float32, device, transform=TRANSFORMS[transform]
        )
        for number in range(4):
            # The first step alone may be looked at, which makes the states.
            overflows = number in (1, 2)
            if overflows and not scaled:
                continue
            raw = gradients(parameters, number)
            if not scaled:
                for p, g in zip(parameters, raw, strict=True):
                    p.grad = g
                optimizer.step()
                continue
            for p, g in zip(parameters, raw, strict=True):
                p.grad = 1024 * g
            if overflows:
                parameters[3].grad[0, 0] = torch.inf
            optimizer.grad_scale = torch.full((), 1024.0, device=device)
            skip = torch.full((1,), float(overflows), device=device)
            before = [p.detach().clone() for p in parameters]
            watches = device.type == "cpu" and number > 0
            optimizer.found_inf = Watched(skip) if watches else skip
            optimizer.step()
            if overflows:
                assert all(map(torch.equal, before, parameters))
        assert is_fused(optimizer)
        found.append((parameters, optimizer))
    for one, other in zip(found[0][0], found[1][0], strict=True):
        assert (one - other).abs().max() <= 1e-6 * other.abs().max()
    for p, q in zip(found[0][0], found[1][0], strict=True):
        for key, value in found[0][1].state[p].items():
            assert (value - found[1][1].state[q][key]).abs().max() <= 1e-6
    receipts = [optimizer.attachment.receipt() for _, optimizer in found]
    for one, other in zip(receipts[0].values(), receipts[1].values(), strict=True):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-9)


class Watched:
    """A flag whose value only a kernel may see."""

    def __init__(self, flag: Tensor) -> None:
        self.flag = flag
        self.device = torch.device("meta")

    def to(self, *where: Any, **how: Any) -> Tensor:
        return self.flag

    def __float__(self) -> float:
        raise AssertionError("a step waited for the device")


def test_a_first_step_that_is_skipped_leaves_no_momentum(device: torch.device) -> None:
    found = []
    for dtype in (torch.float32, torch.float64):
        options = {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}
        parameters, optimizer = made(
            znorm.optim.SGD, options, [(4, 3), (6, 5)], dtype, device, transform=znorm.ZNorm()
        )
        for number in range(4):
            if number == 0 and dtype == torch.float64:
                continue  # torch's own SGD would take the step
            if dtype == torch.float32:
                optimizer.found_inf = torch.full((), float(number == 0), device=device)
            for p, g in zip(parameters, gradients(parameters, number), strict=True):
                p.grad = g
            if number == 1:
                parameters[1].grad = None
            optimizer.step()
            assert number or not optimizer.state
        found.append(parameters)
    for one, other in zip(*found, strict=True):
        assert (one - other).abs().max() <= 1e-6


@pytest.mark.parametrize("where", ["cpu", "device"])
def test_a_learning_rate_in_a_tensor_of_one_dim(device: torch.device, where: str) -> None:
    found = []
    for rate in (0.03, torch.tensor([0.03], device=device if where == "device" else "cpu")):
        parameters, optimizer = made(
            znorm.optim.Adam, {}, [(4, 3)], torch.float32, device, transform=znorm.ZNorm()
        )
        optimizer.param_groups[0]["lr"] = rate
        step(optimizer, parameters, 0)
        assert is_fused(optimizer)
        found.append(parameters[0].detach())
    assert (found[0] - found[1]).abs().max() <= 1e-8


def test_gradients_that_come_and_go(device: torch.device) -> None:
    found = []
    for dtype in (torch.float32, torch.float64):
        parameters, optimizer = made(
            znorm.optim.SGD, {"lr": 0.1, "momentum": 0.9}, [(4, 3), (6, 5), (7,)], dtype, device,
            transform=znorm.ZNorm(),
        )  # fmt: skip
        for number in range(4):
            for p, g in zip(parameters, gradients(parameters, number), strict=True):
                p.grad = g
            parameters[number % 3].grad = None
            optimizer.step()
        assert is_fused(optimizer) == (dtype == torch.float32)
        found.append(parameters)
    for one, other in zip(*found, strict=True):
        assert (one - other).abs().max() <= 1e-6


def test_a_learning_rate_that_changes_and_groups(device: torch.device) -> None:
    found = []
    for dtype in (torch.float32, torch.float64):
        parameters, _ = made(torch.optim.SGD, {}, [(4, 3), (6, 5), (7,)], dtype, device)
        optimizer = znorm.optim.AdamW(
            [
                {"params": parameters[:1], "lr": 0.1, "betas": (0.5, 0.9)},
                {"params": parameters[1:], "weight_decay": 0.3},
            ],
            transform=znorm.ZNorm(),
        )
        for number in range(3):
            optimizer.param_groups[1]["lr"] = 0.1 / (number + 1)
            step(optimizer, parameters, number)
        found.append(parameters)
    for one, other in zip(*found, strict=True):
        assert (one - other).abs().max() <= 1e-6


def test_a_checkpoint_is_taken_up_by_torch_and_back(device: torch.device) -> None:
    shapes = [(24, 40), (7,)]
    parameters, optimizer = made(
        znorm.optim.Adam, {}, shapes, torch.float32, device, transform=znorm.ZNorm()
    )
    for number in range(2):
        step(optimizer, parameters, number)
    others, torchs = made(torch.optim.Adam, {}, shapes, torch.float32, device)
    znorm.attach(torchs, znorm.ZNorm())
    torchs.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    with torch.no_grad():
        for p, q in zip(others, parameters, strict=True):
            p.copy_(q)
    step(optimizer, parameters, 2)
    step(torchs, others, 2)
    optimizer.load_state_dict(copy.deepcopy(torchs.state_dict()))
    step(optimizer, parameters, 3)
    step(torchs, others, 3)
    for one, other in zip(parameters, others, strict=True):
        assert (one - other).abs().max() <= 2e-6


def test_memory_formats_and_what_fills_no_memory(device: torch.device) -> None:
    found = []
    for dtype in (torch.float32, torch.float64):
        generator = torch.Generator().manual_seed(0)
        held = torch.randn(8, 4, 3, 3, generator=generator).to(device, dtype)
        parameters = [nn.Parameter(held.to(memory_format=torch.channels_last))]
        optimizer = znorm.optim.Adam(parameters, transform=znorm.chain(znorm.Centralize()))
        for number in range(2):
            (g,) = gradients(parameters, number)
            parameters[0].grad = g.to(memory_format=torch.channels_last)
            optimizer.step()
        assert is_fused(optimizer) == (dtype == torch.float32)
        found.append(parameters[0])
    assert (found[0] - found[1]).abs().max() <= 1e-6
    wide = torch.ones(6, 8, device=device)
    parameter = nn.Parameter(wide[:, ::2])
    optimizer = znorm.optim.Adam([parameter], transform=znorm.ZNorm())
    parameter.grad = torch.randn(6, 4, device=device)
    optimizer.step()
    assert not is_fused(optimizer)
    assert (wide[:, 1::2] == 1).all()
