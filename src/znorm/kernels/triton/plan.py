"""A plan of where the tensors of a layout lie in memory, in pieces for the GPU's programs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from znorm.kernels.triton.updates import INTERPRETED
from znorm.layers import LayerSlice

__all__ = ["Group", "Plan"]

# Elements that a program takes at a time, and in all; the interpreter pays for each program.
BLOCK = 8192 if INTERPRETED else 1024
CHUNK = 1 << 17 if INTERPRETED else 1 << 14
# Chunks of one unit at most, whose sums one program adds up.
_MOST_CHUNKS = 1024
# The share of the L2 cache that gradients may fill between being measured and being used: the rest
# is for what else the update reads and writes.
_SHARE = 0.3
_L2 = 40 << 20  # where a device does not tell


@dataclass(frozen=True)
class Group:
    """Tensors that stay in the L2 cache together: ranges of a plan's tables."""

    measured: range
    units: range
    finished: range


class Plan:
    """The tables of dense tensors of one dtype that never change.

    Parameters
    ----------
    shapes, strides : sequence of tuples
        Of each tensor.
    slices : sequence of tuples of LayerSlice
        What is measured of each tensor; none where nothing is. All of them fit.
    itemsize : int
        Bytes of an element.
    device : torch.device

    Attributes
    ----------
    measured : int64 tensor of shape (n, 4)
        See `kernels.measure`.
    units : int64 tensor of shape (n, 6)
        See `kernels.merge`.
    finished : int64 tensor of shape (n, 6)
        See `kernels.finish`.
    groups : list of Group
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, ...]],
        strides: Sequence[tuple[int, ...]],
        slices: Sequence[Sequence[LayerSlice]],
        itemsize: int,
        device: torch.device,
    ) -> None:
        measured: list[tuple[int, ...]] = []
        units: list[tuple[int, ...]] = []
        finished: list[tuple[int, ...]] = []
        self.groups: list[Group] = []
        marks, filled = (0, 0, 0), 0
        room = int(_SHARE * _cache(device)) // itemsize
        for tensor, (shape, stride, pieces) in enumerate(zip(shapes, strides, slices, strict=True)):
            size = math.prod(shape)
            if filled and filled + size > room:
                marks, filled = self._close(marks, measured, units, finished), 0
            filled += size
            if not pieces:
                finished += [(tensor, at, n, -1, 0, 0) for at, n in _chunks(0, size, CHUNK)]
            for piece in pieces:
                stretch = piece.stretch(shape, stride)
                assert stretch is not None
                start, length, count = stretch
                for unit in range(count):
                    origin = start + unit * length
                    chunks = _chunks(origin, length, _chunk(length))
                    row = (
                        tensor,
                        origin,
                        length,
                        len(measured),
                        len(chunks),
                        piece.first_unit + unit,
                    )
                    units.append(row)
                    measured += [(tensor, at, n, origin) for at, n in chunks]
                for at, n in _chunks(0, length * count, CHUNK):
                    unit, into = divmod(at, length)
                    apart = length if into + n > length else 0
                    finished.append((tensor, start + at, n, piece.first_unit + unit, apart, into))
        self._close(marks, measured, units, finished)
        self.measured = _table(measured, 4, device)
        self.units = _table(units, 6, device)
        self.finished = _table(finished, 6, device)
        self.tables = (self.measured, self.units, self.finished)

    def _close(
        self, marks: tuple[int, int, int], *tables: Sequence[tuple[int, ...]]
    ) -> tuple[int, int, int]:
        """End a group here; where the next one begins."""
        ends = (len(tables[0]), len(tables[1]), len(tables[2]))
        self.groups.append(Group(*map(range, marks, ends)))
        return ends


def _cache(device: torch.device) -> int:
    if device.type != "cuda":
        return _L2
    return getattr(torch.cuda.get_device_properties(device), "L2_cache_size", _L2)


def _chunk(length: int) -> int:
    return CHUNK * max(1, math.ceil(length / CHUNK / _MOST_CHUNKS))


def _chunks(start: int, length: int, chunk: int) -> list[tuple[int, int]]:
    return [(start + at, min(chunk, length - at)) for at in range(0, length, chunk)]


def _table(rows: Sequence[tuple[int, ...]], width: int, device: torch.device) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, width).to(device)
