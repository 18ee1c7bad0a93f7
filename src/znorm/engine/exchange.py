"""Moments across processes: the parts that each has measured of its shards, merged exactly.

Only three numbers a unit cross, in one collective for each mesh. Units whose elements all lie in
this process stay there; each process sends the units that it has a part of, and no others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from znorm.layout import Layout
from znorm.moments import Affine, Moments

__all__ = ["Exchange", "exchange_of", "here"]

# By the name that torch has given it in 2.13, or the one before; a torch without torch.distributed
# has neither, and no sharded tensors.
_all_gather: Any = getattr(dist, "all_gather_single", getattr(dist, "all_gather_into_tensor", None))


def exchange_of(layout: Layout) -> Exchange:
    """The exchange of a layout that is sharded, made once."""
    if "exchange" not in layout.cache:
        layout.cache["exchange"] = Exchange(layout)
    made: Exchange = layout.cache["exchange"]
    return made


def here(affine: Affine, layout: Layout) -> Affine:
    """The map of the units of which this process holds a part: all, where nothing is sharded."""
    return exchange_of(layout).here(affine) if layout.sharded else affine


class Exchange:
    """The way by which moments cross between the processes that hold a layout's shards.

    It is made of what every process knows of all of them, so that none has to ask.

    Parameters
    ----------
    layout : Layout
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._device = layout.device
        local = layout.local
        whole: list[int] = []
        alone: list[tuple[int, int]] = []  # numbers here and in the whole layout
        members: dict[tuple[Any, tuple[int, ...]], list[int]] = {}
        for index, (entry, own) in enumerate(zip(layout.entries, local.entries, strict=True)):
            sharding = entry.sharding
            if sharding is None or not sharding.mesh_dims or not entry.selected:
                alone += zip(own.unit_range, entry.unit_range, strict=True)
                whole += entry.unit_range
                continue
            members.setdefault((sharding.mesh, sharding.mesh_dims), []).append(index)
            whole += sharding.slices_at(sharding.here(), entry.slices, 0)[1]
        self._whole = self._numbers(whole)
        self._alone_here = self._numbers([here for here, _ in alone])
        self._alone = self._numbers([unit for _, unit in alone])
        self._parts = [_Part(layout, indices, self._numbers) for indices in members.values()]
        self._looked = False

    def merged(self, local: Moments) -> Moments:
        """Moments of all of the layout's units, of those that each process has measured.

        Every process has to call it.

        Raises
        ------
        ValueError
            If some processes have a gradient and others have not. On a GPU that is looked for the
            first time alone, since it waits for the device; later such a unit becomes NaN.
        """
        rows = torch.stack([local.count, local.mean, local.m2])
        whole = rows.new_zeros(3, self._layout.units)
        whole[:, self._alone] = rows[:, self._alone_here]
        for part in self._parts:
            whole[:, part.units] = part.merged(rows)
        count, mean, m2 = whole
        partial = (count > 0) & (count != self._layout.count)
        if self._device.type == "cpu" or not self._looked:
            self._refuse(partial, count)
        self._looked = True
        return Moments(count, torch.where(partial, float("nan"), mean), m2, self._layout)

    def _refuse(self, partial: Tensor, count: Tensor) -> None:
        """Raise if a part of a gradient is missing."""
        if not bool(partial.any()):
            return
        unit = int(partial.nonzero()[0])
        entry = next(e for e in self._layout.entries if unit in e.unit_range)
        raise ValueError(
            f"{entry.name}: some processes have its gradient and others have not "
            f"({int(count[unit])} of {int(self._layout.count[unit])} elements are there); each "
            "must have a gradient, or none"
        )

    def here(self, affine: Affine) -> Affine:
        """The map of the units that this process has a part of."""
        return Affine(affine.center[self._whole], affine.scale[self._whole], self._layout.local)

    def moments_here(self, moments: Moments) -> Moments:
        """The moments of those whole units that this process has a part of."""
        return moments.take(self._whole)

    def totals(self, values: Tensor) -> Tensor:
        """Sums over all processes of numbers of each entry, of shape (entries, numbers).

        Every process has to call it.
        """
        total = values.clone()
        for part in self._parts:
            total[part.entries] = part.gathered(values[part.entries]).sum(0)
        return total

    def _numbers(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)


class _Part:
    """The parameters that are sharded over the same dims of the same mesh.

    Parameters
    ----------
    layout : Layout
    indices : sequence of int
        Their places in it.
    numbers : callable (sequence of int) -> Tensor
        Makes an index on the layout's device.

    Attributes
    ----------
    entries, units : int64 Tensor
        Their places in the layout, and the numbers of their units.
    """

    def __init__(
        self, layout: Layout, indices: Sequence[int], numbers: Callable[[Sequence[int]], Tensor]
    ) -> None:
        first = layout.entries[indices[0]].sharding
        assert first is not None
        self._mesh, self._dims = first.mesh, first.mesh_dims
        here, peers = first.here(), list(first.peers())
        sent: list[list[int]] = [[] for _ in peers]  # the units of each process, in its order
        for index in indices:
            entry = layout.entries[index]
            assert entry.sharding is not None
            for position, coordinate in enumerate(peers):
                sent[position] += entry.sharding.slices_at(coordinate, entry.slices, 0)[1]
        self._width = max(map(len, sent))
        own = (unit for index in indices for unit in layout.local.entries[index].unit_range)
        self._here = numbers(list(own))
        assert len(self._here) == len(sent[peers.index(here)])
        # In the order of units, then of processes: the same sums, in the same order, everywhere.
        units = torch.tensor([unit for units in sent for unit in units], dtype=torch.int64)
        slots = torch.cat(
            [number * self._width + torch.arange(len(units)) for number, units in enumerate(sent)]
        )
        in_order, order = units.sort(stable=True)
        self.units, self._segment = (
            index.to(layout.device) for index in in_order.unique_consecutive(return_inverse=True)
        )
        self._index = slots[order].to(layout.device)
        self.entries = numbers(indices)

    def merged(self, rows: Tensor) -> Tensor:
        """Count, mean and m2 of the units, of shape (3, units), from those of local ones."""
        own = rows.new_zeros(3, self._width)
        own[:, : len(self._here)] = rows[:, self._here]
        every = self.gathered(own).movedim(0, 1).reshape(3, -1)[:, self._index]
        pooled = Moments(*every).pool(self._segment, len(self.units))
        return torch.stack([pooled.count, pooled.mean, pooled.m2])

    def gathered(self, own: Tensor) -> Tensor:
        """The numbers of all processes along a new first dim, in the order of the mesh."""
        device = own.device
        # Where gradients are kept on the CPU the processes still talk by their GPUs.
        values = own.to(self._mesh.device_type).contiguous()[None]
        for dim in reversed(self._dims):
            group = self._mesh.get_group(dim)
            every = values.new_empty(self._mesh.size(dim) * len(values), *own.shape)
            _all_gather(every, values, group=group)
            values = every
        return values.to(device)
