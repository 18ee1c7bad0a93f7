"""ClipValue by kernels of its own: what is written, and what a receipt is told of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import znorm
from kit import DTYPES
from znorm.engine.execute import compiled_batches

pytestmark = pytest.mark.gpu

SHAPES = [(5, 7), (1,), (3, 4, 2), (130, 257)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_is_torchs_clamp_with_sums_in_float64(device: torch.device, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    raw = [torch.randn(s, generator=generator).to(device, dtype) for s in SHAPES]
    layout = znorm.Layout(raw, znorm.ClipValue(0.7))
    for missing in (None, 2):
        given: list[Any] = [None if n == missing else g.clone() for n, g in enumerate(raw)]
        before = [torch.zeros((), device=device, dtype=dtype) if g is None else g for g in given]
        wide = [g.double() for g in before]
        bound = float(torch.tensor(0.7))  # kernels know it in float32
        with torch.no_grad():
            # Of all four at first: one that goes missing has sums of nothing.
            (batch,) = compiled_batches(raw, layout, measures=False, everything=True)
            sums = batch.clamp_(given, 0.7)
        assert sums.dtype == torch.float64
        assert sums.device.type == device.type
        for number, (g, w) in enumerate(zip(given, wide, strict=True)):
            h = w.clamp(-bound, bound)
            expected = [
                w.sum(),
                (w * w).sum(),
                (w * h).sum(),
                (h * h).sum(),
                (w.abs() > bound).sum(),
            ]
            torch.testing.assert_close(
                sums[number], torch.stack(expected).double(), rtol=1e-12, atol=1e-12
            )
            if g is not None:
                assert torch.equal(g, raw[number].clamp(-0.7, 0.7))


def test_nan_stays_nan_and_is_no_change(device: torch.device) -> None:
    row = [torch.nan, torch.inf, -torch.inf, 0.5, -3.0, 0.0]
    parameter = nn.Parameter(torch.zeros(6, device=device))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    attachment = znorm.attach(optimizer, znorm.ClipValue(1.0))
    parameter.grad = torch.tensor(row, device=device)
    optimizer.step()
    expected = torch.tensor(row, device=device).clamp(-1.0, 1.0)
    assert torch.equal(parameter.grad.isnan(), expected.isnan())
    assert torch.equal(parameter.grad[1:], expected[1:])
    attachment.detach()
    attachment = znorm.attach(optimizer, znorm.ClipValue(1.0))
    parameter.grad = torch.tensor([torch.nan, 0.5, -1.0, 1.0, 0.0, -0.5], device=device)
    optimizer.step()
    (receipt,) = attachment.receipt().values()
    assert receipt["clipped"] == 0.0


@pytest.mark.parametrize("chained", [False, True])
def test_a_receipt_is_that_of_float64(device: torch.device, chained: bool) -> None:
    receipts = []
    for dtype in (torch.float32, torch.float64):
        generator = torch.Generator().manual_seed(1)
        parameters = [nn.Parameter(torch.zeros(s, device=device, dtype=dtype)) for s in SHAPES]
        optimizer = torch.optim.SGD(parameters, lr=0.0)
        clip = znorm.ClipValue(0.7)
        transform = znorm.chain(znorm.ZNorm(), clip) if chained else clip
        attachment = znorm.attach(optimizer, transform)
        for _ in range(2):
            for p in parameters:
                p.grad = torch.randn(p.shape, generator=generator).to(device, dtype)
            optimizer.grad_scale = torch.full((), 2.0, device=device)  # type: ignore[attr-defined]
            attachment.transform_gradients()
        receipts.append(attachment.receipt())
    for one, other in zip(receipts[0].values(), receipts[1].values(), strict=True):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-7)
