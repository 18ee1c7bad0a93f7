"""Reference kernels for many tensors at once, as a GPU takes them, here on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import oracle
import znorm
from znorm.engine.execute import transform_
from znorm.kernels import registry, stacked

# Several of one size, of one size with other shapes, one alone, one that is one unit.
SHAPES = [(6, 5), (6, 5), (5, 6), (10, 3), (4, 3, 2, 2), (4, 12), (7, 9), (1, 30), (6, 5)]


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "backend_for", lambda kind="cpu": None)
    monkeypatch.setattr(stacked, "measures", lambda piece, view: True)
    monkeypatch.setattr(stacked, "writes", lambda view: True)


def gradients(dtype: torch.dtype, ratio: float) -> list[Tensor]:
    """In the memory formats that gradients come in: one on the other, turned, channels last."""
    generator = torch.Generator().manual_seed(0)
    wide = [torch.randn(s, generator=generator, dtype=torch.float64) + ratio for s in SHAPES]
    made = [(1e-3 * g).to(dtype) for g in wide]
    made[1] = made[1].t().contiguous().t()
    made[4] = made[4].contiguous(memory_format=torch.channels_last)
    made[8] = torch.stack([made[8], made[8]], -1)[..., 0]
    return made


@torch.no_grad()
@pytest.mark.parametrize("most", [1 << 24, 8])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str
)
@pytest.mark.parametrize("ratio", [0.0, 1e2, 1e6])
def test_z_scores_of_all_shapes_and_memory_formats(
    granularity: str, dtype: torch.dtype, ratio: float, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of 8: matrices of few rows, and rows in pieces.
    monkeypatch.setattr(stacked, "_MOST_ON_CPU", most)
    tensors = gradients(dtype, ratio)
    formula = oracle.whole if granularity == "tensor" else oracle.by_channel
    wanted = [formula(oracle.z_score, g) for g in tensors]  # type: ignore[operator]
    transform_(tensors, znorm.Layout(tensors, znorm.ZNorm(granularity=granularity)))
    tolerance = {
        torch.float32: 3e-7,
        torch.float64: 1e-9,
        torch.bfloat16: 4e-3,
        torch.float16: 5e-4,
    }
    for found, exact in zip(tensors, wanted, strict=True):
        error = (found.double() - exact).abs().max()
        assert error <= tolerance[dtype] * exact.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_complex_ones_missing_ones_and_those_that_are_not_finite(granularity: str) -> None:
    raw = [torch.randn(6, 5), torch.randn(6, 5, dtype=torch.complex64), torch.randn(6, 5)]
    raw[2][1, 1] = torch.inf
    raw.append(torch.ones(6, 5))
    tensors: list[Tensor | None] = [g.clone() for g in raw]
    layout = znorm.Layout([*raw, torch.zeros(6, 5)], znorm.ZNorm(granularity=granularity))
    transform_([*tensors, None], layout)
    first, second, third, fourth = tensors
    assert first is not None
    assert second is not None
    assert third is not None
    formula: Any = oracle.whole if granularity == "tensor" else oracle.by_channel
    torch.testing.assert_close(first.double(), formula(oracle.z_score, raw[0]))
    pairs = formula(oracle.z_score, torch.view_as_real(raw[1]))
    torch.testing.assert_close(torch.view_as_real(second).double(), pairs)
    assert third.isnan().all()
    assert fourth is not None
    assert (fourth == 0).all()


class Counting(TorchDispatchMode):
    """Operations that would be launched: all but views."""

    def __init__(self) -> None:
        super().__init__()
        self.launched = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.launched += not func.is_view
        return func(*args, **(kwargs or {}))


def launched(shapes: Sequence[tuple[int, ...]], granularity: str) -> int:
    tensors = [torch.randn(shape) for shape in shapes]
    layout = znorm.Layout(tensors, znorm.ZNorm(granularity=granularity))
    with torch.no_grad():
        transform_(tensors, layout)
        with Counting() as counting:
            transform_(tensors, layout)
    return counting.launched


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_tensors_of_sizes_that_are_there_already_cost_no_operation(granularity: str) -> None:
    shapes = [(6, 5), (4, 3, 2), (8, 7)]
    assert launched(shapes * 40, granularity) == launched(shapes * 2, granularity)
