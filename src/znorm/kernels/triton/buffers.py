"""Buffers on the device for what changes from step to step: addresses, numbers, and scratch.

Kernels run in the order of a stream, and so do the writes to these buffers: nothing is copied from
memory of the host that could change or be given back meanwhile, and nothing waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Buffers", "Numbers"]

# Parameters, gradients, the two states, step counters.
_ROWS = 5


class Numbers:
    """A vector on the device that is written only where the host's numbers have changed."""

    def __init__(self, vector: Tensor) -> None:
        self.vector = vector
        self._each = list(vector.unbind())
        self._known: list[Any] = [0] * len(self._each)

    def set(self, values: Sequence[int] | Sequence[float | Tensor]) -> None:
        """Write numbers; tensors are copied each time, since only the device knows what they hold.

        Numbers travel as arguments of a kernel, a few hundred in one launch.
        """
        known = [None if isinstance(value, Tensor) else value for value in values]
        if known != self._known:
            self._known = []  # until all is written: an interruption may come between
            torch._foreach_zero_(self._each)
            torch._foreach_add_(self._each, [0 if value is None else value for value in known])
            self._known = known
        for each, value in zip(self._each, values, strict=True):
            if isinstance(value, Tensor):
                each.copy_(value)


class Buffers:
    """The buffers of one plan.

    Parameters
    ----------
    tensors, units : int
        Tensors of the plan, units of the layout.
    items : int
        Of `kernels.measure`.
    device : torch.device
    """

    def __init__(self, tensors: int, units: int, items: int, device: torch.device) -> None:
        self.addresses = torch.zeros(_ROWS, tensors, dtype=torch.int64, device=device)
        self.rows = [Numbers(row) for row in self.addresses]
        self.hyperparameters: Numbers | None = None
        self.z_score = Numbers(torch.zeros(4, dtype=torch.float64, device=device))
        self.constants = torch.zeros(tensors, 8, dtype=torch.float32, device=device)
        self.partial = torch.zeros(items, 2, dtype=torch.float64, device=device)
        self.moments = torch.zeros(2, units, dtype=torch.float64, device=device)
        self.coefficients = torch.zeros(3, units, dtype=torch.float32, device=device)

    def set_hyperparameters(self, groups: Sequence[Sequence[Any]]) -> Tensor:
        """The numbers of each parameter group; flat, on the device."""
        flat = [_scalar(value) for group in groups for value in group]
        if self.hyperparameters is None or len(self.hyperparameters.vector) != len(flat):
            device = self.addresses.device
            zeros = torch.zeros(len(flat), dtype=torch.float64, device=device)
            self.hyperparameters = Numbers(zeros)
        self.hyperparameters.set(flat)
        return self.hyperparameters.vector

    def set_coefficients(self, center: Tensor, scale: Tensor) -> None:
        """Take what was decided for each unit: the center in two parts, all in float32."""
        high = center.to(torch.float32)
        self.coefficients[0] = high
        self.coefficients[1] = center - high
        self.coefficients[2] = scale


def _scalar(value: Any) -> Any:
    """A number, or a tensor that only the device can read."""
    on_device = isinstance(value, Tensor) and value.device.type != "cpu"
    return value.reshape(()) if on_device else float(value)
