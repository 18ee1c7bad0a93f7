"""Tensors that lie where few lie: at odd addresses, as views, none at all, beyond 2^31 elements."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import oracle
import znorm
from kit import TRANSFORMS, UPDATES
from znorm.kernels import registry

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def at_address(values: Tensor, past: int) -> Tensor:
    """The same numbers in a buffer of bytes, so many bytes past a multiple of 64."""
    buffer = bytearray(values.numel() * values.element_size() + 128)
    start = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    offset = -start % 64 + past
    placed = torch.frombuffer(buffer, dtype=values.dtype, count=values.numel(), offset=offset)
    assert placed.data_ptr() % 64 == past
    return placed.view(values.shape).copy_(values)


@pytest.mark.parametrize("past", [1, 2, 4, 12])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "transform",
    [*TRANSFORMS.values(), znorm.chain(znorm.ClipValue(0.5), znorm.ZNorm())],
    ids=[*TRANSFORMS, "stages"],
)
def test_an_address_changes_no_bit(transform: Any, dtype: torch.dtype, past: int) -> None:
    generator = torch.Generator().manual_seed(0)
    raw = [torch.randn(s, generator=generator).to(dtype) + 1 for s in [(37, 29), (5, 3), (7,)]]
    found = []
    for place in (Tensor.clone, lambda values: at_address(values, past)):
        parameters = [nn.Parameter(place(torch.ones_like(g))) for g in raw]
        optimizer = torch.optim.SGD(parameters, lr=0.0)
        attachment = znorm.attach(optimizer, transform)
        for parameter, g in zip(parameters, raw, strict=True):
            parameter.grad = place(g)
        optimizer.step()
        found.append(([p.grad for p in parameters], attachment.receipt()))
    (there, first), (here, second) = found
    for one, other in zip(there, here, strict=True):
        assert torch.equal(one, other)  # type: ignore[arg-type]
    for name, values in first.items():
        # Of several stages torch reads float64 in an order that does depend on the address.
        assert second[name] == pytest.approx(values, rel=1e-12)


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("name", UPDATES)
def test_weights_and_states_at_odd_addresses_are_stepped_on_alike(
    name: str, dtype: torch.dtype
) -> None:
    make, options = UPDATES[name]
    raw = torch.randn(37, 29, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = []
    for past in (0, 2, 1):
        weight = nn.Parameter(at_address(torch.ones_like(raw), past))
        optimizer = make([weight], transform=znorm.ZNorm(), **options)
        for _ in range(3):
            weight.grad = at_address(raw, past)
            optimizer.step()
            for key, value in optimizer.state[weight].items():
                if isinstance(value, Tensor) and value.shape == raw.shape:
                    optimizer.state[weight][key] = at_address(value, past)
        found.append(weight.detach())
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "part of a flat buffer": lambda base: base.view(-1)[3:63].view(12, 5),
    "every second": lambda base: base[:12, ::2][:, :5],
    "turned": lambda base: base[:5, :12].t(),
    "of another type": lambda base: base.view(torch.int32).view(torch.float32)[1:13, 2:7],
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_gradient_that_is_a_view_is_written_alone(name: str) -> None:
    base = torch.randn(16, 20, generator=torch.Generator().manual_seed(0)) + 1
    before = base.clone()
    gradient = VIEWS[name](base)
    wanted = oracle.whole(oracle.z_score, gradient)
    weight = nn.Parameter(torch.zeros(12, 5))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    znorm.attach(optimizer, znorm.ZNorm())
    weight.grad = gradient
    optimizer.step()
    torch.testing.assert_close(gradient.double(), wanted, rtol=0, atol=1e-6)
    VIEWS[name](before).copy_(gradient)
    assert torch.equal(base, before)


@pytest.mark.parametrize(
    "transform",
    [None, *TRANSFORMS.values(), znorm.ClipValue(0.1)],
    ids=["none", *TRANSFORMS, "clip value"],
)
def test_of_nothing_comes_nothing(transform: Any) -> None:
    layout = znorm.Layout([], transform)
    assert layout.describe().rows == ()
    moments = znorm.measure([], layout)
    assert moments.merge(moments).count.shape == (0,)
    if not isinstance(transform, znorm.ClipValue):
        znorm.apply_([], znorm.decide(transform, moments, moments))
    optimizer = torch.optim.SGD([{"params": []}], lr=0.1)
    attachment = znorm.attach(optimizer, transform)
    optimizer.step()
    assert attachment.receipt() == {}
    znorm.z_score_([])
    znorm.z_score_([None, torch.zeros(0, 3)])


def test_an_optimizer_and_a_model_without_parameters_are_refused_by_name() -> None:
    for make in (znorm.optim.Adam, znorm.optim.AdamW, znorm.optim.SGD):
        with pytest.raises(ValueError, match="empty parameter list"):
            make([], transform=znorm.ZNorm())
    with pytest.raises(ValueError, match="none of its parameters requires a gradient"):
        znorm.in_backward(nn.ReLU(), lambda p: torch.optim.SGD(p, lr=0.1), znorm.ZNorm())


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is Linux's, in KiB")
def test_more_elements_than_an_int32_counts() -> None:
    """Weights and gradients of 4 GiB each; no copy of either beside them."""
    if registry.backend_for() is None:
        pytest.skip("the reference kernels are not looked at here")
    script = Path(__file__).with_name("large_parameter.py")
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["peak"] < 12 * 2**30
    # bfloat16 keeps 8 bits.
    assert found["weights"] == pytest.approx(found["wanted"], rel=2**-8)
    assert found["gradients"] == pytest.approx([-w for w in found["wanted"]], rel=2**-8)
