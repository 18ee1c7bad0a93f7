"""Steps of fake tensors on a device that is not there: which operations touch the host's memory.

Run by `test_without_copies.py` in a process of its own, since the device stays registered. Prints a
JSON object: for each transform, with and without a loss scale, the operations.
"""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import znorm

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
        return tensor
    SEEN.append("torch.tensor")
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)


def step_three_times(transform: Any, scaled: bool) -> list[str]:
    """What the third step does on the host: a first one may look up what is kept."""
    with FakeTensorMode(allow_non_fake_inputs=True), HostTensors():
        shapes = [(4, 3), (5,), (2, 3, 3, 3), (1,)]
        parameters = [nn.Parameter(torch.empty(shape, device="gpu")) for shape in shapes]
        optimizer: Any = torch.optim.SGD(parameters, lr=0.1)
        attachment = znorm.attach(optimizer, transform)
        for _ in range(3):
            for parameter in parameters:
                parameter.grad = torch.empty_like(parameter)
            if scaled:
                optimizer.grad_scale = torch.ones(1, device="gpu")
                optimizer.found_inf = torch.zeros(1, device="gpu")
            SEEN.clear()
            attachment.transform_gradients()
        return list(SEEN)


if __name__ == "__main__":
    # Not in every torch that is supported.
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend("gpu")
    torch.tensor = partial(copied, torch.tensor)  # type: ignore[assignment]
    found = {
        f"{transform!r}{', scaled' if scaled else ''}": step_three_times(transform, scaled)
        for transform in TRANSFORMS
        for scaled in (False, True)
    }
    print(json.dumps(found))
