"""Gradients before and after, where no moments tell what was done: kept, then read again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from znorm.kernels import registry
from znorm.kernels.base import ComparingBatch, KernelBatch
from znorm.kernels.reference import statistics_dtype
from znorm.layout import Layout

__all__ = ["Compared", "Kept", "compared_rows", "sums_of"]

# Elements up to which torch reads in float64.
_SMALL = 1 << 16


@dataclass(frozen=True)
class Compared:
    """The fate of some tensors of a layout, a row each.

    Parameters
    ----------
    indices, sizes : tuple of int
        Their places in the layout, and their elements.
    sums : Tensor of shape (tensors, 4)
        As of `sums_of`.
    changed : Tensor of shape (tensors,), bool
        Whether any entry is another one than before.
    """

    indices: tuple[int, ...]
    sizes: tuple[int, ...]
    sums: Tensor
    changed: Tensor


def compared_rows(
    indices: Sequence[int], tensors: Sequence[Tensor | None], read: Tensor, layout: Layout
) -> Compared:
    """The rows that kernels have read of a batch's tensors, without those that are missing."""
    rows = tuple(row for row, index in enumerate(indices) if tensors[index] is not None)
    if len(rows) < len(indices):
        key = ("rows that are there", rows, read.device)
        if key not in layout.cache:
            layout.cache[key] = torch.tensor(rows, dtype=torch.int64, device=read.device)
        read = read[layout.cache[key]]
    here = tuple(indices[row] for row in rows)
    sizes = tuple(t.numel() for t in (tensors[index] for index in here) if t is not None)
    return Compared(here, sizes, read[:, :4], read[:, 4] > 0)


class Kept:
    """Copies of gradients as they are now, for a look at what has become of them.

    Parameters
    ----------
    tensors : sequence of Tensor or None
        In the order of the layout; None is passed over.
    layout : Layout
    """

    def __init__(self, tensors: Sequence[Tensor | None], layout: Layout) -> None:
        batches: list[KernelBatch] = []
        if not torch.is_grad_enabled():
            batches = registry.batches(
                tensors,
                [()] * len(tensors),
                units=0,
                measures=False,
                everything=True,
                cache=layout.cache.setdefault("compared", {}),
            )
        self._layout = layout
        self._batches = [
            (tuple(batch.indices), batch, batch.copy(tensors))
            for batch in batches
            if isinstance(batch, ComparingBatch)
        ]
        done = {index for indices, _, _ in self._batches for index in indices}
        self._clones = {
            index: tensor.clone()
            for index, tensor in enumerate(tensors)
            if tensor is not None and index not in done
        }

    def compared(self, tensors: Sequence[Tensor | None]) -> Iterator[Compared]:
        """Read the tensors as they are now beside the copies."""
        for indices, batch, kept in self._batches:
            yield compared_rows(indices, tensors, batch.compare(kept, tensors), self._layout)
        for index, before in self._clones.items():
            after = tensors[index]
            assert after is not None
            same = (before == after) | ((before != before) & (after != after))
            size = before.numel() * (2 if before.is_complex() else 1)
            yield Compared((index,), (size,), sums_of(before, after)[None], ~same.all()[None])


def sums_of(before: Tensor, after: Tensor) -> Tensor:
    """Sum, sum of squares, product of before and after, sum of squares after; of real numbers."""
    g, h = _flat(before), _flat(after)
    return torch.stack([g.sum(), torch.dot(g, g), torch.dot(g, h), torch.dot(h, h)])


def _flat(tensor: Tensor) -> Tensor:
    """One-dimensional and real; float64 where that costs little, else float32 or wider."""
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    flat = real.detach().reshape(-1)
    wide = statistics_dtype(flat.device) if flat.numel() <= _SMALL else torch.float32
    return flat.to(torch.promote_types(flat.dtype, wide))
