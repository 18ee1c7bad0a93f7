"""The compiled kernels write what is theirs alone: canaries around every array, and bounds checked.

Missing gradients, several units and receipts are paired, since a receipt's rows, a layout's units
and a list's tensors are counted differently as soon as they meet.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import znorm
from znorm import kernels
from znorm.kernels import registry

pytest.importorskip("numba")

GUARD = 64  # elements on both sides


class Canaries:
    """Arrays and tensors with a margin around them, that nothing may write."""

    def __init__(self) -> None:
        self._whole: list[tuple[Any, Any]] = []

    def array(self, shape: Any, dtype: Any = np.float64) -> Any:
        size = int(np.prod(shape))
        whole = np.zeros(size + 2 * GUARD, dtype=dtype)
        mark = np.arange(1, GUARD + 1).astype(whole.dtype)
        whole[:GUARD], whole[GUARD + size :] = mark, mark
        self._whole.append((whole, mark))
        return whole[GUARD : GUARD + size].reshape(shape)

    def tensor(self, value: Tensor) -> Tensor:
        size = value.numel()
        whole = torch.empty(size + 2 * GUARD, dtype=value.dtype)
        mark = torch.arange(1, GUARD + 1).to(value.dtype)
        whole[:GUARD], whole[GUARD + size :] = mark, mark
        self._whole.append((whole, mark))
        inside = whole[GUARD : GUARD + size].view(value.shape)
        return inside.copy_(value)

    def check(self) -> None:
        assert self._whole
        for whole, mark in self._whole:
            for margin in (whole[:GUARD], whole[-GUARD:]):
                assert (margin == mark).all()


@pytest.fixture
def canaries(monkeypatch: pytest.MonkeyPatch) -> Iterator[Canaries]:
    """Around what plans and receipts allocate, too; looked at when the test is over."""
    kept = Canaries()
    if registry.backend_for() is None or kernels.name_on(torch.device("cpu")) != "cpu":
        pytest.skip("the compiled kernels for a CPU are not used here")
    from znorm.engine import receipts
    from znorm.kernels.cpu import plan

    class Numpy:
        def __getattr__(self, name: str) -> Any:
            return getattr(np, name)

        def zeros(self, shape: Any, dtype: Any = np.float64) -> Any:
            return kept.array(shape, dtype)

    class Torch:
        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

        def zeros(self, *shape: Any, **options: Any) -> Any:
            made = torch.zeros(*shape, **options)
            return kept.tensor(made) if made.device.type == "cpu" else made

    monkeypatch.setattr(plan, "np", Numpy())
    monkeypatch.setattr(receipts, "torch", Torch())
    yield kept
    kept.check()


TRANSFORMS: dict[str, Any] = {
    "znorm": znorm.ZNorm(),
    "znorm, all": znorm.ZNorm(select="all"),
    "channel": znorm.ZNorm(granularity="channel"),
    "centralize": znorm.Centralize(),
    "global": znorm.ClipGlobalNorm(0.1),
    "value": znorm.ClipValue(0.01),
    "adaptive": znorm.AdaptiveClip(0.1),
    "chain": znorm.chain(znorm.ClipValue(0.5), znorm.ZNorm()),
}
MAKERS: dict[str, Any] = {
    "attached": None,
    "Adam": lambda p, t, m: znorm.optim.Adam(p, transform=t, model=m),
    "SGD": lambda p, t, m: znorm.optim.SGD(p, lr=0.1, momentum=0.9, transform=t, model=m),
}


class Net(nn.Module):
    """Tensors of one unit, of three, of none, and one that is large enough to be split."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.norm = nn.LayerNorm(16)
        self.large = nn.Linear(16, 9000)
        self.small = nn.Linear(16, 3)


def grow(canaries: Canaries, dtype: torch.dtype) -> Net:
    torch.manual_seed(0)
    model = Net().to(dtype)
    for parameter in model.parameters():
        parameter.data = canaries.tensor(parameter.data)
    return model


@pytest.mark.parametrize("missing", ["none", "packed", "large", "vectors", "at random"])
@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_nothing_is_written_beside_what_is_ours(
    canaries: Canaries, transform: str, make: str, missing: str
) -> None:
    dtype = torch.bfloat16 if missing == "large" else torch.float32
    model = grow(canaries, dtype)
    chosen = TRANSFORMS[transform]
    if make == "attached":
        optimizer: Any = torch.optim.SGD(model.parameters(), lr=0.1)
        znorm.attach(optimizer, chosen, model=model)
    else:
        optimizer = MAKERS[make](model.parameters(), chosen, model)
    generator = torch.Generator().manual_seed(1)
    names = [name for name, _ in model.named_parameters()]
    given: dict[str, list[Tensor]] = {name: [] for name in names}
    for _ in range(4):
        draw = torch.rand(len(names), generator=generator)
        for (name, parameter), chance in zip(model.named_parameters(), draw, strict=True):
            absent = {
                "none": False,
                "packed": "in_proj" in name,
                "large": "large" in name,
                "vectors": parameter.dim() < 2,
                "at random": bool(chance < 0.5),
            }[missing]
            gradient = torch.randn(parameter.shape, generator=generator).to(dtype)
            parameter.grad = None if absent else canaries.tensor(gradient)
            if not absent:
                given[name].append(gradient.double())
        optimizer.step()
    receipt = znorm.attachment_of(optimizer).receipt()  # type: ignore[union-attr]
    rows = znorm.attachment_of(optimizer).describe().rows  # type: ignore[union-attr]
    for row in rows:
        seen = given[row["name"]]
        if not row["transformed"] or not seen:
            assert row["name"] not in receipt
            continue
        found = receipt[row["name"]]
        assert found["steps"] == len(seen), row["name"]
        norm = sum(float(gradient.norm()) for gradient in seen) / len(seen)
        assert found["norm_before"] == pytest.approx(norm, rel=1e-4), row["name"]


def test_the_frozen_half_of_an_attention_layer_crashes_nothing() -> None:
    """200 steps of it ended in a segmentation fault: its three units were taken for three rows."""
    net = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    net.self_attn.requires_grad_(False)
    optimizer = torch.optim.AdamW(net.parameters())
    attachment = znorm.attach(optimizer, znorm.ZNorm(), model=net)
    for _ in range(200):
        optimizer.zero_grad()
        net(torch.randn(2, 3, 32)).square().mean().backward()
        optimizer.step()
    found = attachment.receipt()
    assert {name: values["steps"] for name, values in found.items()} == {
        "linear1.weight": 200,
        "linear2.weight": 200,
    }
    assert found["linear1.weight"]["norm_after"] == pytest.approx((64 * 32) ** 0.5, rel=1e-3)


@pytest.mark.slow
def test_under_a_build_that_checks_bounds(tmp_path: Path) -> None:
    """numba then looks at every index; what a thread of torch's raises is printed."""
    root = Path(__file__).parents[2]
    chosen = ["tests/kernels/test_bounds.py", "tests/test_receipts.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen],
        cwd=root,
        env={**os.environ, "NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-4000:]
    assert "IndexError" not in said
