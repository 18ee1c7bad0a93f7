"""A plan of where the tensors of a layout lie in memory, for the CPU kernels."""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from znorm.kernels.cpu import driver, entry, openmp
from znorm.kernels.cpu.intrinsics import DTYPES
from znorm.kernels.cpu.threads import alone, run_together
from znorm.layers import LayerSlice

__all__ = ["Plan"]

# Elements that one thread takes at a time.
_PIECE = 1 << 16

# Elements of a whole list from which on a second thread shortens the step: torch's own are awake.
_WORTH_SHARING = 1 << 18
_WORTH_WAKING = 1 << 20

_Array = np.ndarray[Any, Any]

_plans: weakref.WeakSet[Plan] = weakref.WeakSet()


class Plan:
    """Dense tensors of one dtype, the stretches of memory that are their units, and scratch.

    Parameters
    ----------
    shapes, strides : sequence of tuples
        Of each tensor.
    slices : sequence of tuples of LayerSlice
        What is measured of each tensor; none where nothing is. All of them fit.
    dtype : torch.dtype
    measures : bool
        Whether the kernel measures units, and decides them by ZNorm if they are to be finished.
    threads : int

    Attributes
    ----------
    addresses : int64 array of shape (4, tensors)
        To be filled: parameters, gradients, the optimizer's two states.
    moments : float64 array of shape (2, units)
        By the layout's own numbers, from the first to the last unit of these tensors.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, ...]],
        strides: Sequence[tuple[int, ...]],
        slices: Sequence[Sequence[LayerSlice]],
        dtype: torch.dtype,
        *,
        units: int,
        measures: bool,
        threads: int,
    ) -> None:
        self.dtype = DTYPES[dtype]
        self.measures = measures
        self.threads = threads
        self.elements = sum(math.prod(shape) for shape in shapes)
        split: list[tuple[int, ...]] = []
        whole: list[tuple[int, ...]] = []
        rows = 0
        for tensor, (shape, stride, pieces) in enumerate(zip(shapes, strides, slices, strict=True)):
            if not pieces:
                whole += [(tensor, at, n, 1, -1, -1) for at, n in _pieces(0, math.prod(shape))]
            for piece in pieces:
                stretch = piece.stretch(shape, stride)
                assert stretch is not None
                start, length, count = stretch
                if count > 1:
                    several = max(1, _PIECE // max(1, length))
                    whole += [
                        (
                            tensor,
                            start + unit * length,
                            length,
                            min(several, count - unit),
                            piece.first_unit + unit,
                            -1,
                        )
                        for unit in range(0, count, several)
                    ]
                elif not measures:
                    whole += [
                        (tensor, at, n, 1, piece.first_unit, -1) for at, n in _pieces(start, length)
                    ]
                elif length < driver.LARGE:
                    whole.append((tensor, start, length, 1, piece.first_unit, -1))
                else:
                    # One thread would still be at it when the others are done with all the rest.
                    if 2 * threads * length > self.elements and threads > 1:
                        split.append((tensor, start, length, piece.first_unit, rows))
                    else:
                        whole.append((tensor, start, length, 1, piece.first_unit, rows))
                    rows += -(-length // driver.BLOCK)
        # The largest first, so that no thread is left with one at the end.
        whole.sort(key=lambda item: -item[2] * item[3])
        self.split = np.array(split, dtype=np.int64).reshape(-1, 5)
        self.whole = np.array(whole, dtype=np.int64).reshape(-1, 6)
        self.addresses = np.zeros((4, len(shapes)), dtype=np.int64)
        self.constants = np.zeros((len(shapes), 8), dtype=np.float32)
        self.moments = np.zeros((2, units))
        self.coefficients = np.zeros((3, units), dtype=np.float32)
        self._partial = np.zeros((rows, 2))
        self._sync = np.zeros(len(split) + 2, dtype=np.int64)
        self._transform = np.zeros(4)
        self._table = entry.make_table(
            measures,
            self.addresses,
            self.split,
            self.whole,
            self._transform,
            self.coefficients,
            self.moments,
            self.constants,
            self._partial,
            self._sync,
        )
        # Two Python threads may transform lists of the same layout at once.
        self.lock = threading.Lock()
        _plans.add(self)

    def set_coefficients(self, center: Tensor, scale: Tensor) -> None:
        """Take what was decided for the units of the whole layout, which are not measured here."""
        wide = center.cpu().numpy()  # a layout may begin on a GPU
        self.coefficients[0] = wide
        self.coefficients[1] = wide - self.coefficients[0]
        self.coefficients[2] = scale.cpu().numpy()

    def run(
        self, kind: int, transform: Sequence[float] | None = None, inv_scale: float = 1.0
    ) -> None:
        """Do a step of ``kind`` with what the arrays hold."""
        self._sync[:] = 0
        if transform is not None:
            self._transform[:] = transform
        table = self._table
        table[entry.KIND] = kind
        table.view(np.float64)[entry.INV_SCALE] = inv_scale
        function = entry.entry(self.dtype)
        # One that waits for others would wait for ever if there are fewer than it was told.
        shared = not len(self.split) and openmp.has_team()
        with self._several(_WORTH_SHARING if shared else _WORTH_WAKING) as several:
            if not several:
                self._call(0, 1, function)
            elif shared:
                openmp.call_in_team(function, table.ctypes.data, self.threads)
            else:
                run_together(self._call, self.threads, (function,), self._give_up)

    def _call(self, thread: int, threads: int, function: Any) -> None:
        table = self._table if threads == 1 else self._table.copy()
        table[entry.THREAD], table[entry.THREADS] = thread, threads
        function(table.ctypes.data)

    def clamp(self, bound: float) -> _Array:
        """Clamp gradients in place; nothing of these tensors is measured.

        Returns
        -------
        float64 array of shape (tensors, 5)
            Sums of g, g^2, g * clamped and clamped^2, and how many entries were changed.
        """
        return self._read(driver.clamp, np.float32(bound))

    def compare(self) -> _Array:
        """Read what the first two rows of addresses point at; nothing of these is measured.

        Returns
        -------
        float64 array of shape (tensors, 5)
            Sums of g, g^2, g * h and h^2, and how many entries differ.
        """
        return self._read(driver.compare)

    def _read(self, function: Any, *numbers: Any) -> _Array:
        """The sums that a function makes of each item, added up by tensor."""
        read = np.zeros((len(self.whole), 5))
        sync = np.zeros(1, dtype=np.int64)
        arguments = (self.dtype, self.addresses, self.whole, *numbers, read, sync)
        with self._several(_WORTH_WAKING) as several:
            if several:
                run_together(function, self.threads, arguments, self._give_up)
            else:
                function(0, 1, *arguments)
        by_tensor = np.zeros((self.addresses.shape[1], 5))
        np.add.at(by_tensor, self.whole[:, 0], read)
        return by_tensor

    @contextmanager
    def _several(self, enough: int) -> Iterator[bool]:
        """True if more threads than this one are to work; they are then this plan's to use."""
        # Waking one takes longer than its share of a small list, and they may be another Python
        # thread's now.
        several = self.threads > 1 and self.elements >= enough and alone().acquire(blocking=False)
        try:
            yield several
        finally:
            if several:
                alone().release()

    def _give_up(self) -> None:
        self._sync[1] = 1


def _pieces(start: int, length: int) -> list[tuple[int, int]]:
    return [(start + at, min(_PIECE, length - at)) for at in range(0, length, _PIECE)]


def _after_fork() -> None:
    # Another thread of the parent's may have held them.
    for plan in _plans:
        plan.lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
