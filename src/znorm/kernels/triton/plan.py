"""A plan of where the tensors of a layout lie in memory, in pieces for the GPU's programs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from znorm.kernels.triton.sizes import SIZES
from znorm.layers import LayerSlice

__all__ = ["Plan"]

# Chunks of one unit at most, whose sums one program adds up.
_MOST_CHUNKS = 1024


class Plan:
    """The tables of dense tensors of one dtype that never change.

    Parameters
    ----------
    shapes, strides : sequence of tuples
        Of each tensor.
    slices : sequence of tuples of LayerSlice
        What is measured of each tensor; none where nothing is. All of them fit.
    device : torch.device

    Attributes
    ----------
    measured : int64 tensor of shape (n, 4)
        See `kernels.measure`.
    units : int64 tensor of shape (n, 6)
        See `kernels.merge`.
    finished : int64 tensor of shape (n, 6)
        See `kernels.finish`.
    spans : int64 tensor of shape (tensors, 2)
        Where the items of each tensor begin in ``finished``, and how many they are.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, ...]],
        strides: Sequence[tuple[int, ...]],
        slices: Sequence[Sequence[LayerSlice]],
        device: torch.device,
    ) -> None:
        measured: list[tuple[int, ...]] = []
        units: list[tuple[int, ...]] = []
        finished: list[tuple[int, ...]] = []
        spans: list[tuple[int, ...]] = []
        for tensor, (shape, stride, pieces) in enumerate(zip(shapes, strides, slices, strict=True)):
            begin = len(finished)
            if not pieces:
                size = math.prod(shape)
                finished += [(tensor, at, n, -1, 0, 0) for at, n in _chunks(0, size, SIZES.chunk)]
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
                for at, n in _chunks(0, length * count, SIZES.chunk):
                    unit, into = divmod(at, length)
                    apart, into = _apart(length, into) if into + n > length else (0, 0)
                    finished.append((tensor, start + at, n, piece.first_unit + unit, apart, into))
            spans.append((begin, len(finished) - begin))
        self.measured = _table(measured, 4, device)
        self.units = _table(units, 6, device)
        self.finished = _table(finished, 6, device)
        self.spans = _table(spans, 2, device)
        self.tables = (self.measured, self.units, self.finished, self.spans)


def _apart(length: int, into: int) -> tuple[int, int]:
    """The distance of units, and how far into one an item starts, in numbers of 32 bits.

    Of units longer than a chunk an item sees the end of one and the beginning of the next: only how
    much is left of the first counts.
    """
    apart = min(length, SIZES.chunk)
    return apart, apart - (length - into)


def _chunk(length: int) -> int:
    return SIZES.chunk * max(1, math.ceil(length / SIZES.chunk / _MOST_CHUNKS))


def _chunks(start: int, length: int, chunk: int) -> list[tuple[int, int]]:
    return [(start + at, min(chunk, length - at)) for at in range(0, length, chunk)]


def _table(rows: Sequence[tuple[int, ...]], width: int, device: torch.device) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, width).to(device)
