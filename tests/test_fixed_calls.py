"""A step makes as many operations of torch for 12 tensors as for 50, where kernels serve it."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import znorm
from znorm.engine.execute import multiply_, multiply_in_float32_
from znorm.kernels import registry
from znorm.transforms.base import Transform
from znorm.transforms.composition import transforms_of

pytestmark = pytest.mark.skipif(
    registry.backend_for() is None, reason="reference kernels go tensor by tensor"
)


class Halve(Transform):
    """Its own operation on each tensor is one that nothing else here makes."""

    elementwise = True

    def apply_(self, gradient: Tensor) -> None:
        gradient.ldexp_(torch.tensor(-1))


OWN = {"aten.ldexp_.default", "aten.pow.Scalar", "aten.mul_.Tensor", "aten.lift_fresh.default"}

TRANSFORMS: dict[str, Any] = {
    "observe": None,
    "znorm": znorm.ZNorm(),
    "channel": znorm.ZNorm(granularity="channel"),
    "centralize": znorm.Centralize(),
    "unit": znorm.UnitNorm(),
    "chain": znorm.chain(znorm.Centralize(), znorm.ClipGlobalNorm(1.0)),
    "global": znorm.ClipGlobalNorm(1.0),
    "adaptive": znorm.AdaptiveClip(0.05),
    "clip value": znorm.ClipValue(0.1),
    "znorm, value": znorm.chain(znorm.ZNorm(), znorm.ClipValue(0.5)),
    "value, adaptive": znorm.chain(znorm.ClipValue(0.1), znorm.AdaptiveClip(0.05)),
    "value, channel, norm": znorm.chain(
        znorm.ClipValue(0.1), znorm.ZNorm(granularity="channel"), znorm.ClipNorm(1.0)
    ),
    "own": Halve(),
    "own, znorm": znorm.chain(Halve(), znorm.ZNorm()),
    "layers": znorm.ZNorm(select=[(lambda n, p: p.dim() == 2, znorm.Layers(2))]),
}
WAYS = ["attach", "attach, scaled", "optim", "optim, scaled", "functions"]


class Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[str(func)] += 1
        return func(*args, **(kwargs or {}))


def stepper(transform: Any, parameters: list[nn.Parameter], way: str) -> Callable[[], None]:
    if way == "functions" and any(one.elementwise for one in transforms_of(transform)):
        layout = znorm.Layout(parameters, transform)

        def apply() -> None:
            gradients = [parameter.grad for parameter in parameters]
            moments = znorm.measure(gradients, layout)
            weights = znorm.measure([p.detach() for p in parameters], layout)
            znorm.apply_(gradients, znorm.decide(transform, moments, weights))

        return apply
    optimizer: Any
    if way.startswith("attach"):
        optimizer = torch.optim.Adam(parameters, fused=True)
        # An attachment lives as long as its optimizer, which the step below keeps.
        znorm.attach(optimizer, transform)
    else:
        optimizer = znorm.optim.Adam(parameters, transform=transform)

    def step() -> None:
        if way.endswith("scaled"):
            optimizer.grad_scale, optimizer.found_inf = torch.tensor(8.0), torch.tensor(0.0)
        optimizer.step()

    return step


def fill(parameters: list[nn.Parameter], missing: int) -> None:
    """Gradients for all parameters but one in so many."""
    for number, parameter in enumerate(parameters):
        left_out = missing and number % missing == 0
        parameter.grad = None if left_out else torch.randn_like(parameter)


def calls(transform: Any, tensors: int, way: str, missing: int = 0) -> dict[str, int]:
    # In half precision torch's own step, which some of these end in, goes tensor by tensor.
    half = torch.float32 if way.startswith("optim") else torch.bfloat16
    parameters = [
        nn.Parameter(
            torch.randn((4, 3) if number % 4 else (3,)).to(torch.float32 if number % 5 else half)
        )
        for number in range(tensors)
    ]
    step = stepper(transform, parameters, way)
    counting = Counting()
    for _ in range(2):  # the first one makes what is kept
        fill(parameters, missing)
        counting.calls.clear()
        with counting:
            step()
    # The functions' own caller looks at weights one by one.
    views = {"aten.detach.default"} if way == "functions" else set()
    own = OWN if "own" in names_of(transform) else set()
    return {name: count for name, count in counting.calls.items() if name not in views | own}


def names_of(transform: Any) -> str:
    return next(name for name, one in TRANSFORMS.items() if one is transform)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=list(TRANSFORMS))
def test_the_number_of_operations_does_not_grow_with_the_tensors(transform: Any, way: str) -> None:
    if way == "functions" and any(one.elementwise for one in transforms_of(transform)):
        pytest.skip("the functions measure once")
    if transform is None and way != "attach":
        pytest.skip("there is nothing to observe with")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert calls(transform, 50, way) == calls(transform, 12, way)
        if way == "attach":
            assert calls(transform, 50, way, missing=3) == calls(transform, 12, way, missing=3)


@pytest.mark.parametrize("way", ["attach", "optim"])
def test_a_chain_takes_as_many_for_a_thousand_tensors_as_for_ten(way: str) -> None:
    chain = TRANSFORMS["chain"]
    assert calls(chain, 1000, way) == calls(chain, 10, way)


def opcodes(transform: Any, rows: int, dtype: torch.dtype) -> int:
    """How much of this package's Python runs in a step on an embedding of so many rows: opcodes."""
    weight = nn.Parameter(torch.randn(rows, 2, dtype=dtype))
    optimizer = znorm.optim.SGD([weight], lr=0.1, transform=transform)
    run = 0

    def count(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal run
        if "znorm" not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes = True
        run += event == "opcode"
        return count

    weight.grad = torch.randn_like(weight)
    optimizer.step()  # makes what is kept, row by row
    before = sys.gettrace()
    sys.settrace(count)
    try:
        optimizer.step()
    finally:
        sys.settrace(before)
    return run


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "name", ["channel", "centralize", "chain", "adaptive", "value, channel, norm", "layers"]
)
def test_no_loop_of_python_goes_over_rows(name: str, dtype: torch.dtype) -> None:
    """In float32 by the compiled kernels, in float64 by the reference."""
    many, few = (opcodes(TRANSFORMS[name], rows, dtype) for rows in (50_000, 50))
    assert many < few + 1_000


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.complex64],
    ids=str,
)
def test_gradients_are_unscaled_together_to_the_bits_of_one_by_one(dtype: torch.dtype) -> None:
    together = [
        torch.randn(99, dtype=dtype),
        torch.randn(5, 7, dtype=dtype).t(),
        torch.randn((), dtype=dtype),
    ]
    apart = [gradient.clone() for gradient in together]
    third = torch.tensor(1 / 3, dtype=torch.float64)
    multiply_([*together, None], third)
    for one, other in zip(together, apart, strict=True):
        assert torch.equal(one, other.mul_(third))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_scale_that_half_precision_rounds_to_zero_is_no_zero(dtype: torch.dtype) -> None:
    """As on a GPU, where torch rounds the scale to the type of what it multiplies."""
    given = [torch.randn(99) * 2**12, torch.randn(5, 7).t() * 2**12, torch.tensor(2.0**15)]
    tensors = [gradient.to(dtype) for gradient in given]
    right = [(tensor.double() * 2.0**-25).to(dtype) for tensor in tensors]
    multiply_in_float32_(tensors, torch.tensor(2.0**-25, dtype=torch.float64))
    for one, other in zip(tensors, right, strict=True):
        assert torch.equal(one, other)
        assert one.any()
