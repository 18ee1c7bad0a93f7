"""Where tensors lie: at addresses that are no multiple of 16 bytes, far into a tensor, or nowhere.

Kernels take stretches that lie well 16 bytes at a time, and all others element by element; each
tensor is told from the others, and numbers do not depend on it.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import znorm
from kit import is_fused

pytestmark = pytest.mark.gpu

# Of the last, channels of 35 elements begin anywhere, even where the tensor does not.
SHAPES = [(4, 64), (3, 32), (7,), (3, 35)]


@pytest.fixture(autouse=True)
def promises(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter, that addresses are multiples of what the compiler is told they are."""
    if device.type != "cpu":
        return
    from triton.runtime.interpreter import TensorHandle

    def set_attr(handle: Any, name: str, value: Any) -> None:
        assert name == "tt.divisibility"
        assert (handle.data % value == 0).all(), "an address that is no multiple"

    monkeypatch.setattr(TensorHandle, "set_attr", set_attr)


def placed(value: Tensor, elements: int) -> Tensor:
    """The same numbers, so many elements after an address that 16 bytes divide."""
    room = torch.zeros(value.numel() + elements, dtype=value.dtype, device=value.device)
    assert room.data_ptr() % 16 == 0
    view = room[elements:].view(value.shape)
    view.copy_(value)
    return view


def numbers(device: torch.device, dtype: torch.dtype, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator).to(device, dtype) + 0.5 for s in SHAPES]


TRANSFORMS: dict[str, Any] = {
    "znorm": znorm.ZNorm(),
    "channel": znorm.ZNorm(granularity="channel"),
    "value": znorm.ClipValue(0.7),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_gradient_anywhere(device: torch.device, transform: str, dtype: torch.dtype) -> None:
    results = []
    for places in ((0, 0, 0, 0), (1, 0, 2, 3)):
        parameters = [nn.Parameter(one) for one in numbers(device, dtype, 0)]
        optimizer = torch.optim.SGD(parameters, lr=0.0)
        attachment = znorm.attach(optimizer, TRANSFORMS[transform])
        gradients = numbers(device, dtype, 1)
        for p, g, place in zip(parameters, gradients, places, strict=True):
            p.grad = placed(g, place)
        optimizer.step()
        written = [p.grad.clone() for p in parameters if p.grad is not None]
        results.append((written, list(attachment.receipt().values())))
    (first, receipt), *others = results
    assert not torch.equal(first[0], numbers(device, dtype, 1)[0])
    for written, other in others:
        # Sums in another order can fall on the other side of a tie.
        for one, two in zip(first, written, strict=True):
            torch.testing.assert_close(one, two, rtol=torch.finfo(dtype).eps, atol=1e-6)
        for one, two in zip(receipt, other, strict=True):
            assert one == pytest.approx(two, rel=1e-12)


# Parameter, gradient and the two states: each alone can lie badly, and so can all of them.
CASES = [(torch.float32, tuple(int(n == one) for n in range(4))) for one in range(4)]


@pytest.mark.parametrize(("dtype", "places"), [*CASES, (torch.bfloat16, (1, 3, 5, 7))], ids=str)
def test_a_step_of_tensors_anywhere(
    device: torch.device, dtype: torch.dtype, places: tuple[int, ...]
) -> None:
    results = []
    for chosen in ((0, 0, 0, 0), places):
        # The second tensor alone, the others lie well.
        of = [dict(enumerate(chosen)) if number == 1 else {} for number in range(len(SHAPES))]
        values = numbers(device, dtype, 0)
        parameters = [
            nn.Parameter(placed(one, at.get(0, 0))) for one, at in zip(values, of, strict=True)
        ]
        optimizer = znorm.optim.Adam(parameters, transform=znorm.ZNorm())
        for p, at in zip(parameters, of, strict=True):
            zeros = torch.zeros_like(p.detach())
            optimizer.state[p] = {
                "step": torch.zeros((), device=device),
                "exp_avg": placed(zeros, at.get(2, 0)),
                "exp_avg_sq": placed(zeros, at.get(3, 0)),
            }
        for seed in (1, 2):
            for p, g, at in zip(parameters, numbers(device, dtype, seed), of, strict=True):
                p.grad = placed(g, at.get(1, 0))
            optimizer.step()
        assert is_fused(optimizer)
        results.append([p.detach().clone() for p in parameters])
        assert not torch.equal(parameters[1], values[1])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_what_lies_around_is_left_alone(device: torch.device) -> None:
    room = torch.arange(64.0, device=device)
    parameter = nn.Parameter(torch.zeros(5, 7, device=device))
    parameter.grad = room[3 : 3 + 35].view(5, 7)
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    for transform in TRANSFORMS.values():
        attachment = znorm.attach(optimizer, transform)
        optimizer.step()
        attachment.detach()
        assert room[:3].tolist() == [0.0, 1.0, 2.0]
        assert room[38:].tolist() == list(range(38, 64))


def test_a_stretch_far_into_a_tensor_is_found_by_64_bits(device: torch.device) -> None:
    """Items of a tensor of which all but the end is nowhere: an address that is far before it."""
    from znorm.kernels.triton import kernels
    from znorm.kernels.triton.clamp import SUMS, clamp
    from znorm.kernels.triton.sizes import SIZES

    triton = pytest.importorskip("triton")
    far = (1 << 33) + 8  # 2^31 elements and more, 2^35 bytes
    end = torch.arange(96.0, device=device)
    addresses = torch.zeros(5, 1, dtype=torch.int64, device=device)
    addresses[:2] = end.data_ptr() - 4 * far
    for shift in (0, 1):  # well, and badly
        items = torch.tensor([[0, far + shift, 64, far]], device=device)
        partial = torch.zeros(1, 2, dtype=torch.float64, device=device)
        kernels.measure[(1,)](
            addresses, items, partial, 1, DTYPE=triton.language.float32, BLOCK=SIZES.block
        )
        wide = end[shift : shift + 64].double()
        assert partial.tolist() == [[float(wide.sum()), float(wide.square().sum())]]
    items = torch.tensor([[0, far + 32, 64, -1, 0, 0]], device=device)
    sums = torch.zeros(1, SUMS, dtype=torch.float64, device=device)
    clamp[(1,)](addresses, items, sums, 50.0, 1, DTYPE=triton.language.float32, BLOCK=SIZES.block)
    assert end.tolist() == [min(float(n), 50.0) if n >= 32 else float(n) for n in range(96)]
    assert sums[0, 4] == 96 - 51
    items = torch.tensor([[0, far + 64, 32, 0, 0, 0]], device=device)
    nothing = torch.zeros(1, device=device)
    kernels.finish[(1,)](
        addresses,
        items,
        torch.tensor([[50.0], [0.0], [2.0]], device=device),  # center in two parts, scale
        nothing,
        nothing,
        nothing,
        1,
        1,
        DTYPE=triton.language.float32,
        BLOCK=SIZES.block,
        KIND=kernels.AFFINE,
        HAS_INV_SCALE=False,
        HAS_FOUND_INF=False,
    )
    assert end[:64].tolist() == [min(float(n), 50.0) if n >= 32 else float(n) for n in range(64)]
    assert end[64:].tolist() == [0.0] * 32


def test_a_plan_of_more_than_2_to_the_31_elements(device: torch.device) -> None:
    from znorm.kernels.triton.plan import Plan
    from znorm.layers import LayerSlice

    length = (1 << 31) + 5
    shapes = [(length,), (2, length)]
    slices = [
        (LayerSlice(None, (length,), (), 0),),
        (LayerSlice(None, (2, length), (0,), 1),),
    ]
    plan = Plan(shapes, [(1,), (length, 1)], slices, device)
    for number, (shape, units) in enumerate(zip(shapes, (1, 2), strict=True)):
        for table in (plan.measured, plan.finished):
            mine = table[table[:, 0] == number].cpu()
            starts, lengths = mine[:, 1], mine[:, 2]
            assert starts[0] == 0
            assert torch.equal(starts[1:], (starts + lengths)[:-1])  # one after the other
            assert starts[-1] + lengths[-1] == torch.Size(shape).numel()
            assert lengths.max() < 1 << 31
        assert plan.units[plan.units[:, 0] == number, 2].tolist() == [length] * units
    # The item in which the second unit begins: which elements are whose.
    _, start, n, unit, apart, into = plan.finished[plan.finished[:, 4] > 0].tolist()[0]
    place = torch.arange(n)
    assert torch.equal(unit + (into + place) // apart, 1 + (start + place) // length)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_nothing_and_next_to_nothing(device: torch.device, transform: str) -> None:
    znorm.z_score_([])
    sizes = [(0,), (3, 0), (2, 3), (1, 1)]
    parameters = [nn.Parameter(torch.ones(size, device=device)) for size in sizes]
    for make in (torch.optim.SGD, znorm.optim.SGD):
        optimizer: Any = make(parameters, lr=0.1)
        attachment = znorm.attach(optimizer, TRANSFORMS[transform])
        for p in parameters:
            p.grad = torch.full_like(p, 3.0)
        optimizer.step()
        attachment.detach()
        assert [tuple(p.shape) for p in parameters] == sizes
        assert all(p.isfinite().all() for p in parameters)
