"""A step on a GPU: as many operations of torch and launches for 10 tensors as for 300.

The tensors lie on a CPU and are served by the Triton kernels, whose launches are counted and not
made: torch's own operations are the same on any device.
"""

from __future__ import annotations

from collections import Counter
from itertools import product
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import znorm
from znorm.kernels import registry
from znorm.kernels.base import StepContext

pytest.importorskip("triton")

from znorm.kernels.triton import BACKEND, batch, kernels
from znorm.kernels.triton.updates import RULES

# A view of each weight as a constant, which is no kernel.
VIEWS = {"aten.detach.default"}

TRANSFORMS: dict[str, Any] = {
    "znorm": znorm.ZNorm(),
    "channel": znorm.ZNorm(granularity="channel"),
    "centralize": znorm.Centralize(),
    "unit": znorm.UnitNorm(),
    "chain": znorm.chain(znorm.Centralize(), znorm.ClipGlobalNorm(1.0)),
    "clip norm": znorm.ClipNorm(1.0),
    "adaptive": znorm.AdaptiveClip(0.05),
    "clip value": znorm.ClipValue(0.1),
    "nothing": None,
}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Operations and launches, once the Triton kernels serve the CPU."""
    counted: Counter[str] = Counter()

    class Launched:
        def __init__(self, name: str) -> None:
            self.name = name

        def __getitem__(self, grid: tuple[int]) -> Any:
            def launch(*args: Any, **kwargs: Any) -> None:
                counted[f"launch of {self.name}"] += 1

            return launch

    monkeypatch.setitem(registry._loaded, "cpu", BACKEND)
    monkeypatch.delitem(registry._refused, "cpu", raising=False)
    monkeypatch.setattr(registry, "_is_ready", lambda *_: True)
    for name in ("measure", "merge", "finish"):
        monkeypatch.setattr(kernels, name, Launched(name))
    for name in ("clamp", "add_up"):
        monkeypatch.setattr(batch, name, Launched(name))
    for name, rule in RULES.items():
        monkeypatch.setitem(RULES, name, rule._replace(advance=Launched("advance")))
    return counted


class Counting(TorchDispatchMode):
    def __init__(self, counted: Counter[str]) -> None:
        super().__init__()
        self.counted = counted

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func) not in VIEWS:
            self.counted[str(func)] += 1
        return func(*args, **(kwargs or {}))


def third_step(transform: Any, tensors: int, way: str, calls: Counter[str]) -> dict[str, int]:
    """What a third step calls: the first ones make what is kept."""
    parameters = [nn.Parameter(torch.zeros(4, 3)) for _ in range(tensors)]
    optimizer: Any
    if way == "attach":
        optimizer = torch.optim.Adam(parameters, fused=True)
        step = znorm.attach(optimizer, transform).transform_gradients
    else:
        make = getattr(znorm.optim, way)
        optimizer = make(parameters, lr=0.1, transform=transform)
        step = optimizer.step
    for _ in range(3):
        for parameter in parameters:
            # Where the last ones lay is taken: addresses are written anew.
            parameter.grad = torch.zeros(4, 3)
        calls.clear()
        with Counting(calls):
            step()
    return dict(calls)


# Of what clamps and what does nothing, the step is torch's own.
CASES = [(name, "attach") for name in TRANSFORMS]
CASES += [(name, way) for name, way in product(list(TRANSFORMS)[:-2], ("Adam", "SGD"))]


@pytest.mark.parametrize(("name", "way"), CASES)
def test_a_step_of_300_tensors_calls_what_one_of_10_does(
    name: str, way: str, calls: Counter[str]
) -> None:
    transform = TRANSFORMS[name]
    few, many = (third_step(transform, tensors, way, calls) for tensors in (10, 300))
    assert few == many
    launches = {key: count for key, count in few.items() if key.startswith("launch")}
    # Weights are measured, too, where gradients are compared with them.
    measured = 2 if name == "adaptive" else 1
    expected = {"measure": measured, "merge": measured, "finish": 1}
    if name == "clip value":
        expected = {"clamp": 1, "add_up": 1}
    elif name == "nothing":
        expected = {"measure": 1, "merge": 1}
    if way != "attach":
        expected["advance"] = 1
    assert launches == {f"launch of {kernel}": count for kernel, count in expected.items()}


def test_rows_of_an_embedding_cost_no_operation_each(calls: Counter[str]) -> None:
    found = []
    for rows in (10, 5_000):
        gradients = [torch.zeros(rows, 4)]
        layout = znorm.Layout(gradients, znorm.ZNorm(granularity="channel"))
        for _ in range(2):
            calls.clear()
            with Counting(calls):
                moments = znorm.measure(gradients, layout)
                znorm.apply_(gradients, znorm.decide(layout.transform, moments))
        found.append(dict(calls))
    assert found[0] == found[1]


def test_a_receipt_costs_no_launch_where_kernels_keep_it(calls: Counter[str]) -> None:
    gradients = [torch.zeros(4, 3) for _ in range(3)]
    layout = znorm.Layout(gradients, znorm.ZNorm())
    receipt = znorm.engine.receipts.Receipt(layout)
    form = layout.fused_form
    with torch.no_grad():
        (one,) = znorm.engine.execute.compiled_batches(gradients, layout, measures=True)
        for context in (StepContext(), StepContext(receipt=receipt)):
            calls.clear()
            one.normalize_(gradients, form, context)  # type: ignore[arg-type]
            assert sum(count for key, count in calls.items() if "launch" in key) == 3
