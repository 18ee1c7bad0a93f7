"""The bytes that a step moves, counted by Triton's interpreter: each gradient is read once a pass.

Beside those of torch's fused Adam, which reads four tensors and writes three: 28 bytes an element
of float32, which make 40 with a transform attached, and 32 where it is part of the update.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import znorm

pytestmark = pytest.mark.gpu

SHAPES = [(256, 64), (128, 96), (7, 33)]
CHANNELS = sum(shape[0] for shape in SHAPES)
ELEMENTS = sum(torch.Size(shape).numel() for shape in SHAPES)


@pytest.fixture
def moved(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes that are loaded, and stored."""
    if device.type != "cpu":
        pytest.skip("a GPU does not count bytes; the interpreter does")
    from triton.runtime.interpreter import InterpreterBuilder

    bytes_ = [0, 0]
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def counted_load(builder: Any, ptrs: Any, mask: Any, *rest: Any) -> Any:
        bytes_[0] += int(mask.data.sum()) * ptrs.get_element_ty().primitive_bitwidth // 8
        return load(builder, ptrs, mask, *rest)

    def counted_store(builder: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        bytes_[1] += int(mask.data.sum()) * ptrs.get_element_ty().primitive_bitwidth // 8
        return store(builder, ptrs, value, mask, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", counted_load)
    monkeypatch.setattr(InterpreterBuilder, "create_masked_store", counted_store)
    return bytes_


# Reads and writes of an element, by float32 numbers: what is added to Adam's, or all of the update.
CASES: dict[str, tuple[str, Any, int, int]] = {
    "attached": ("attach", znorm.ZNorm(select="all"), 2, 1),
    "clamped": ("attach", znorm.ClipValue(0.1), 1, 1),
    # Both decide for all tensors together, of one reading; the last reads the weights, too.
    "chain, attached": (
        "attach",
        znorm.chain(znorm.Centralize(select="all"), znorm.ClipGlobalNorm(1.0)),
        2,
        1,
    ),
    "adaptive, attached": ("attach", znorm.AdaptiveClip(0.1), 3, 1),
    "chain": ("Adam", znorm.chain(znorm.Centralize(select="all"), znorm.ClipGlobalNorm(1.0)), 5, 3),
    "adaptive": ("Adam", znorm.AdaptiveClip(0.1), 6, 3),
    "Adam": ("Adam", znorm.ZNorm(select="all"), 5, 3),
    "SGD": ("SGD", znorm.ZNorm(select="all"), 3, 1),
}


@pytest.mark.parametrize(
    ("case", "dtype"),
    [*((case, torch.float32) for case in CASES), ("Adam", torch.bfloat16)],
    ids=str,
)
def test_each_element_is_moved_no_more_often_than_it_must(
    moved: list[int], case: str, dtype: torch.dtype
) -> None:
    way, transform, reads, writes = CASES[case]
    parameters = [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in SHAPES]
    optimizer: Any
    if way == "attach":
        optimizer = torch.optim.SGD(parameters, lr=0.0)
        step = znorm.attach(optimizer, transform).transform_gradients
    else:
        optimizer = getattr(znorm.optim, way)(parameters, lr=0.1, transform=transform)
        step = optimizer.step
    for _ in range(2):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape).to(dtype)
        moved[:] = 0, 0
        step()
    size = dtype.itemsize
    # What lies beside: tables, sums and coefficients, a few numbers for each tensor.
    beside = 800 * len(SHAPES)
    if "chain" in case or "adaptive" in case:
        # Of each channel, too; and the three coefficients of an element, which are in the cache.
        beside += 300 * CHANNELS + 3 * 4 * ELEMENTS
    assert reads * size * ELEMENTS <= moved[0] <= reads * size * ELEMENTS + beside
    assert writes * size * ELEMENTS <= moved[1] <= writes * size * ELEMENTS + beside
