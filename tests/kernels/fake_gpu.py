"""Steps of fake tensors on a device that is not there: which operations touch the host's memory.

Run by `test_without_copies.py` in a process of its own, since the device stays registered. Prints a
JSON object: for each way to step and each transform, with and without a loss scale, the operations.

With ``triton`` as its argument the device is served by the Triton kernels, whose launches are not
made; else by the reference kernels.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import znorm
from znorm.kernels import memory, registry

TRANSFORMS: list[Any] = [
    znorm.ZNorm(),
    znorm.ZNorm(granularity="channel"),
    znorm.Centralize(),
    znorm.UnitNorm(),
    znorm.ClipValue(0.1),
    znorm.ClipNorm(0.1),
    znorm.ClipGlobalNorm(0.1),
    znorm.AdaptiveClip(0.1),
    znorm.chain(znorm.ZNorm(), znorm.ClipValue(1.0)),
    znorm.chain(znorm.Centralize(), znorm.ClipGlobalNorm(1.0)),
    None,
]


SEEN: list[str] = []
LAUNCHED: set[str] = set()


class HostTensors(TorchDispatchMode):
    """Notes operations on tensors of the host, numbers aside, which are kernels' arguments."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, made)) if isinstance(t, Tensor)]
        if any(t.device.type == "cpu" and t.dim() for t in tensors):
            SEEN.append(str(function))
        return made


def copied(make: Any, data: Any, dtype: Any = None, device: Any = "cpu") -> Tensor:
    """``torch.tensor``: what is made of numbers of the host is copied to where it is to be."""
    tensor: Tensor = make(data, dtype=dtype)
    if torch.device(device).type == "cpu":
        # Without its numbers, with which no fake tensor can be moved.
        return torch.empty(tensor.shape, dtype=tensor.dtype)
    SEEN.append("torch.tensor")
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)


class Launched:
    """Stands for a kernel, and sees to it that nothing it is given lies on the host."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getitem__(self, grid: Any) -> Any:
        assert all(isinstance(size, int) and size for size in grid)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        assert not [one for one in args if isinstance(one, Tensor) and one.device.type != "gpu"]
        LAUNCHED.add(self.name)


def serve_by_triton() -> None:
    """Have the device served by the Triton kernels, which are taken to be right."""
    from znorm.kernels.triton import batch, kernels
    from znorm.kernels.triton.updates import RULES

    registry._SOURCES["gpu"] = registry._SOURCES["cuda"]
    registry.fault = lambda *_: None  # type: ignore[attr-defined]
    for name in ("measure", "merge", "finish"):
        setattr(kernels, name, Launched(name))
    batch.clamp, batch.add_up = Launched("clamp"), Launched("add_up")
    for name, rule in RULES.items():
        RULES[name] = rule._replace(advance=Launched(name))
    # They are of a class of their own, and lie nowhere.
    memory.is_plain = lambda *_: True  # type: ignore[attr-defined]
    Tensor.data_ptr = lambda tensor: 16 * (1 + id(tensor) % 1024)  # type: ignore[method-assign, assignment]


def third_step(way: str, transform: Any, scaled: bool) -> list[str]:
    """What a third step does on the host: a first one may look up what is kept."""
    with FakeTensorMode(allow_non_fake_inputs=True), HostTensors():
        shapes = [(4, 3), (5,), (2, 3, 3, 3), (1,)]
        parameters = [nn.Parameter(torch.empty(shape, device="gpu")) for shape in shapes]
        optimizer: Any
        if way == "attach":
            optimizer = torch.optim.SGD(parameters, lr=0.1)
            step = znorm.attach(optimizer, transform).transform_gradients
        else:
            make = getattr(znorm.optim, way)
            optimizer = make(parameters, lr=0.1, transform=transform)
            step = optimizer.step
        for number in range(3):
            for parameter in parameters:
                parameter.grad = torch.empty_like(parameter)
            if scaled and (way == "attach" or number == 2):  # a first one may look at the flag
                optimizer.grad_scale = torch.ones(1, device="gpu")
                optimizer.found_inf = torch.zeros(1, device="gpu")
            SEEN.clear()
            step()
        assert way == "attach" or optimizer._fused_step is not None
        return list(SEEN)


if __name__ == "__main__":
    # Not in every torch that is supported.
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend("gpu")
    torch.tensor = partial(copied, torch.tensor)  # type: ignore[assignment]
    ways = ["attach"]
    if sys.argv[1:] == ["triton"]:
        serve_by_triton()
        ways.append("Adam")
    found = {
        f"{way} {transform!r}{', scaled' if scaled else ''}": third_step(way, transform, scaled)
        for way in ways
        for transform in TRANSFORMS
        # Of what clamps and what does nothing, the step is torch's own.
        if way == "attach" or not (transform is None or "ClipValue" in repr(transform))
        for scaled in (False, True)
    }
    if len(ways) > 1:
        assert {"measure", "merge", "finish", "clamp", "add_up", "adam"} == LAUNCHED
    print(json.dumps(found))
