"""Tiles: windows of one size that cover pictures of any size, and what is put together of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["Tiles", "corners"]


def corners(
    height: int, width: int, size: tuple[int, int], overlap: float
) -> list[tuple[int, int]]:
    """The upper left corners of windows that cover a picture, evenly spread.

    Neighbours share ``overlap`` of their side, or a little more. A picture that is smaller than a
    window has one, at (0, 0).

    Examples
    --------
    >>> corners(8, 20, (8, 8), 0.25)
    [(0, 0), (0, 6), (0, 12)]
    """
    return [
        (top, left)
        for top in _starts(height, size[0], overlap)
        for left in _starts(width, size[1], overlap)
    ]


def _starts(length: int, side: int, overlap: float) -> list[int]:
    room = max(0, length - side)
    gaps = math.ceil(room / max(1.0, side * (1 - overlap)))
    return [round(room * place / max(1, gaps)) for place in range(gaps + 1)]


@dataclass(frozen=True)
class Tiles:
    """The place of each image of a split in the pictures that it was cut from.

    Parameters
    ----------
    picture : Tensor of shape (N,), int64
        The number of its picture; those of one picture stand together.
    corner : Tensor of shape (N, 2), int64
        Row and column of its upper left pixel there.
    sizes : tuple of (int, int)
        Height and width of each picture.
    names : tuple of str
        Of each picture.
    """

    picture: Tensor
    corner: Tensor
    sizes: tuple[tuple[int, int], ...]
    names: tuple[str, ...]

    @property
    def case_names(self) -> tuple[str, ...]:
        """The names of the pictures whose tiles are here, in order."""
        return tuple(self.names[number] for number in dict.fromkeys(self.picture.tolist()))

    def take(self, index: Tensor) -> Tiles:
        """The places of the images at ``index``."""
        return replace(self, picture=self.picture[index], corner=self.corner[index])

    def rows_of(self, names: Iterable[str]) -> Tensor:
        """The rows of the tiles of these pictures, in their order."""
        places = {name: place for place, name in enumerate(self.names)}
        wanted = torch.tensor([places[name] for name in names], dtype=torch.int64)
        return torch.isin(self.picture, wanted).nonzero().flatten()

    def joined(self, values: Iterable[Tensor]) -> Iterator[tuple[int, Tensor]]:
        """Put together what there is for each tile: (pictures' number, (..., H, W)).

        Where tiles overlap floating point numbers are averaged, those near a tile's middle counting
        more, since a net knows less of what lies at its edge; of whole numbers, which are the same
        in both, either is taken.

        Parameters
        ----------
        values : iterable of Tensor of shape (n, ..., h, w)
            For all tiles in their order, in pieces of any number.
        """
        row, open_ = 0, None
        for piece in values:
            for value in piece:
                number = int(self.picture[row])
                if open_ is not None and open_.number != number:
                    yield open_.number, open_.whole()
                    open_ = None
                if open_ is None:
                    open_ = _Canvas(number, self.sizes[number], value)
                open_.add(value, self.corner[row].tolist())
                row += 1
        if open_ is not None:
            yield open_.number, open_.whole()


class _Canvas:
    """One picture that is put together."""

    def __init__(self, number: int, size: tuple[int, int], value: Tensor) -> None:
        self.number, self.size = number, size
        self.side = tuple(value.shape[-2:])
        room = tuple(max(*pair) for pair in zip(size, self.side, strict=True))
        self.total = torch.zeros(*value.shape[:-2], *room, dtype=value.dtype)
        self.weight = torch.zeros(room)
        rows, columns = (_hat(side) for side in self.side)
        self.hat = rows[:, None] * columns

    def add(self, value: Tensor, corner: list[int]) -> None:
        (top, left), (height, width) = corner, self.side
        place = (..., slice(top, top + height), slice(left, left + width))
        if not value.is_floating_point():
            self.total[place] = value
            return
        self.total[place] += value * self.hat
        self.weight[place] += self.hat

    def whole(self) -> Tensor:
        height, width = self.size
        whole = self.total[..., :height, :width]
        return whole / self.weight[:height, :width] if whole.is_floating_point() else whole


def _hat(side: int) -> Tensor:
    """Rising to the middle and falling from it, nowhere 0."""
    up = torch.arange(1, side + 1, dtype=torch.float32)
    return torch.minimum(up, up.flip(0)) / side
