"""The CPU kernels as a backend."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from numba.core.event import Listener, register, unregister
from torch import Tensor

from znorm.kernels.cpu.batch import Batch
from znorm.kernels.cpu.intrinsics import DTYPES
from znorm.kernels.cpu.updates import RULES
from znorm.layers import LayerSlice

__all__ = ["CPU"]


class CPU:
    """Kernels for a CPU, compiled by numba; see `base.Backend`."""

    name = "cpu"
    dtypes = tuple(DTYPES)
    update_rules = tuple(RULES)

    def __init__(self) -> None:
        self._announced: set[torch.dtype] = set()

    def batch(
        self,
        indices: Sequence[int],
        tensors: Sequence[Tensor],
        slices: Sequence[Sequence[LayerSlice]],
        *,
        units: int,
        measures: bool,
    ) -> Batch:
        return Batch(indices, tensors, slices, units=units, measures=measures)

    def rests_on(self) -> int:
        return torch.get_num_threads()

    @contextmanager
    def first_use(self, dtype: torch.dtype, device: torch.device) -> Iterator[None]:
        """Loading takes half a second, compiling seconds, once on a machine: a line says so."""
        announcer = _Announcer(dtype, self._announced)
        register("numba:compile", announcer)  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            unregister("numba:compile", announcer)  # type: ignore[no-untyped-call]


class _Announcer(Listener):
    """Prints a line once for a dtype as soon as anything is compiled; nothing if all is on disk."""

    def __init__(self, dtype: torch.dtype, announced: set[torch.dtype]) -> None:
        self._dtype, self._announced = dtype, announced

    def on_start(self, event: Any) -> None:
        if self._dtype not in self._announced:
            self._announced.add(self._dtype)
            name = str(self._dtype).removeprefix("torch.")
            line = f"znorm: compiling the CPU kernels for {name}; they are kept for the next time"
            print(line, file=sys.stderr, flush=True)

    def on_end(self, event: Any) -> None: ...
