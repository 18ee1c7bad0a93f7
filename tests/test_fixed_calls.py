"""A step makes as many operations of torch for 10 tensors as for 200, where kernels serve it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import znorm
from znorm.kernels import registry

# AdaptiveClip looks at weights as constants: a view of each, which is no kernel.
VIEWS = {"aten.detach.default"}

TRANSFORMS: dict[str, Any] = {
    "znorm": znorm.ZNorm(),
    "channel": znorm.ZNorm(granularity="channel"),
    "unit": znorm.UnitNorm(),
    "chain": znorm.chain(znorm.Centralize(), znorm.ClipGlobalNorm(1.0)),
    "clip norm": znorm.ClipNorm(1.0),
    "adaptive": znorm.AdaptiveClip(0.05),
    "clip value": znorm.ClipValue(0.1),
}


class Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[str(func)] += 1
        return func(*args, **(kwargs or {}))


def calls(transform: Any, tensors: int, way: str) -> dict[str, int]:
    parameters = [nn.Parameter(torch.randn(4, 3)) for _ in range(tensors)]
    optimizer: Any
    if way == "attach":
        optimizer = torch.optim.Adam(parameters, fused=True)
        znorm.attach(optimizer, transform)
    else:
        optimizer = znorm.optim.Adam(parameters, transform=transform)
    counting = Counting()
    for _ in range(3):  # the first ones make what is kept
        for parameter in parameters:
            parameter.grad = torch.randn(4, 3)
        counting.calls.clear()
        with counting:
            optimizer.step()
    return {name: count for name, count in counting.calls.items() if name not in VIEWS}


@pytest.mark.parametrize("way", ["attach", "optim"])
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=list(TRANSFORMS))
def test_the_number_of_operations_does_not_grow_with_the_tensors(transform: Any, way: str) -> None:
    if registry.backend_for() is None:
        pytest.skip("reference kernels go tensor by tensor")
    assert calls(transform, 200, way) == calls(transform, 10, way)
