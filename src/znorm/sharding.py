"""Tensors of which each process holds a shard (DTensor): what of them lies here.

FSDP2, HSDP and torch's tensor parallelism make such parameters. A layer is then in several
processes, and so are the elements of a unit. Nothing else in the package knows how a tensor is
sharded; `engine.exchange` is what crosses between processes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from znorm._torch_internals import local_tensor
from znorm.layers import Cut, LayerSlice

__all__ = ["Sharding", "has_replicas", "is_dtensor", "lie_alike", "placed", "shard_of"]


def is_dtensor(tensor: Tensor) -> bool:
    """True if it is one process's view of a tensor that several hold.

    By duck type: to import torch.distributed.tensor costs 0.2 s.
    """
    return hasattr(tensor, "placements") and hasattr(tensor, "device_mesh")


def lie_alike(one: Tensor, other: Tensor) -> bool:
    """True if two tensors lie on the same processes in the same way, or both on this one alone."""
    same: bool = placed(one) == placed(other)
    return same


def placed(tensor: Any) -> Any:
    """The mesh of a tensor and how it lies there; None of a plain one."""
    if type(tensor) is nn.Parameter or not is_dtensor(tensor):
        return None
    return tensor.device_mesh, tuple(tensor.placements)


def has_replicas(tensor: Any) -> bool:
    """True if several processes hold the same part of a sharded tensor."""
    sharding = Sharding.of(tensor)
    return sharding is not None and sharding.processes < int(sharding.mesh.mesh.numel())


def shard_of(tensor: Tensor) -> Tensor:
    """The shard of a tensor that this process holds, sharing its memory; of a plain one, itself."""
    return tensor if type(tensor) is Tensor or not is_dtensor(tensor) else local_tensor(tensor)


@dataclass(frozen=True)
class Sharding:
    """The way a tensor lies on a mesh of processes.

    Parameters
    ----------
    mesh : torch.distributed.device_mesh.DeviceMesh
    placements : tuple of Placement
        For each dim of the mesh.
    shape : tuple of int
        Of the whole tensor.
    """

    mesh: Any
    placements: tuple[Any, ...]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> Sharding | None:
        """The sharding of a tensor; None of a plain one."""
        if not is_dtensor(tensor):
            return None
        known: Any = tensor
        return cls(known.device_mesh, tuple(known.placements), tuple(tensor.shape))

    @property
    def mesh_dims(self) -> tuple[int, ...]:
        """The dims of the mesh along which processes hold different parts; not the replicas'."""
        return tuple(dim for dim, one in enumerate(self.placements) if hasattr(one, "dim"))

    @property
    def processes(self) -> int:
        """The number of processes that hold one copy of the tensor together."""
        return math.prod(int(self.mesh.size(dim)) for dim in self.mesh_dims)

    def why_unsupported(self, tensor: Tensor, slices: Sequence[LayerSlice]) -> str | None:
        """The reason why its units cannot be measured shard by shard; None if they can be.

        Parameters
        ----------
        tensor : Tensor
            The one that is sharded so.
        slices : sequence of LayerSlice
            Of the whole tensor.
        """
        if self.mesh.get_coordinate() is None:
            return "its mesh does not hold this process"
        if any(one.is_partial() for one in self.placements):
            return f"it is a sum that is not complete {self.placements}; redistribute it first"
        if any(not _ascends(self.mesh, dim) for dim in self.mesh_dims):
            return (
                f"the processes of its mesh {self.mesh.mesh.tolist()} are not in ascending order, "
                "in which torch cuts"
            )
        if tuple(shard_of(tensor).shape) != self.shape_at(self.here()):
            return f"its shard has another shape than its placements {self.placements} say"
        if any(piece.cut is not None or piece.unit_dims for piece in slices):
            for dim in self.mesh_dims:
                placement = self.placements[dim]
                if _split_factor(placement) not in (1, self._later_shards(dim)):
                    return (
                        f"its placements {self.placements} do not leave a stretch of dim "
                        f"{placement.dim} to each process, so that its layers or channels cannot "
                        "be told apart"
                    )
        return None

    def here(self) -> tuple[int, ...]:
        """The coordinate of this process in the mesh."""
        return tuple(self.mesh.get_coordinate())

    def peers(self) -> Iterator[tuple[int, ...]]:
        """The coordinates of the processes that hold a copy of the tensor together, in order."""
        own, dims = self.here(), self.mesh_dims
        for position in itertools.product(*(range(self.mesh.size(dim)) for dim in dims)):
            at = dict(zip(dims, position, strict=True))
            yield tuple(at.get(dim, coordinate) for dim, coordinate in enumerate(own))

    def slices_at(
        self, coordinate: tuple[int, ...], whole: Sequence[LayerSlice], first_unit: int
    ) -> tuple[tuple[LayerSlice, ...], list[int]]:
        """The slices of a process's shard.

        Parameters
        ----------
        coordinate : tuple of int
            Of the process.
        whole : sequence of LayerSlice
            Of the tensor.
        first_unit : int
            The number of the first of their units, among those of that process.

        Returns
        -------
        slices : tuple of LayerSlice
            Of the shard, none of them empty.
        units : list of int
            For each of their units the one of the whole layout that it is a part of.
        """
        region = self._region(coordinate)
        slices: list[LayerSlice] = []
        units: list[int] = []
        for piece in whole:
            for one, numbers in _within(piece, region, first_unit + len(units)):
                slices.append(one)
                units += numbers
        return tuple(slices), units

    def shape_at(self, coordinate: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a process's shard."""
        return tuple(map(len, self._region(coordinate)))

    def _region(self, coordinate: tuple[int, ...]) -> tuple[range, ...]:
        """The part of each dim that a process holds, cut as ``torch.chunk`` cuts."""
        region = [range(length) for length in self.shape]
        for mesh_dim in sorted(self.mesh_dims, key=lambda d: _split_factor(self.placements[d]) > 1):
            dim, parts = self.placements[mesh_dim].dim, self.mesh.size(mesh_dim)
            each = math.ceil(len(region[dim]) / parts)
            start = each * coordinate[mesh_dim]
            region[dim] = region[dim][start : start + each]
        return tuple(region)

    def _later_shards(self, mesh_dim: int) -> int:
        """The parts into which later dims of the mesh cut what one of them cuts."""
        dim = self.placements[mesh_dim].dim
        later = (d for d in self.mesh_dims if d > mesh_dim and self.placements[d].dim == dim)
        return math.prod(int(self.mesh.size(d)) for d in later)


def _ascends(mesh: Any, dim: int) -> bool:
    """True if the processes along a dim of a mesh are in the order of their numbers."""
    return bool((mesh.mesh.diff(dim=dim) > 0).all())


def _split_factor(placement: Any) -> int:
    """1, or into how many parts the tensor is cut before one that is strided cuts each of them.

    FSDP2 marks so what tensor parallelism, a later dim of the mesh, has cut first.
    """
    factor: int = getattr(placement, "split_factor", 1)
    return factor


def _within(
    piece: LayerSlice, region: tuple[range, ...], first_unit: int
) -> Iterator[tuple[LayerSlice, list[int]]]:
    """A slice of a tensor, as far as it lies in a region of it, with the numbers of its units."""
    cut, inside = _cut_within(piece.cut, region)
    if not all(inside):
        return
    sizes = tuple(map(len, inside))
    # Real and imaginary parts are a last dim of the view.
    parts = piece.view[len(piece.view) - 1 :] if _has_parts(piece, region) else ()
    if not piece.unit_dims:
        yield LayerSlice(cut, sizes + parts, (), first_unit), [piece.first_unit]
    elif len(piece.unit_dims) == 1:
        (dim,) = piece.unit_dims
        one = LayerSlice(cut, sizes + parts, piece.unit_dims, first_unit)
        yield one, [piece.first_unit + number for number in inside[dim]]
    else:
        # Of a transposed convolution dim 0 runs over groups; a shard may begin within one.
        groups, each = piece.view[0], piece.view[1]
        outputs = piece.view[2]
        for group in range(groups):
            rows = _overlap(inside[0], range(group * each, (group + 1) * each))
            if not rows:
                continue
            start = rows.start - inside[0].start
            one = LayerSlice(
                Cut(0, start, len(rows)),
                (1, len(rows), *sizes[1:], *parts),
                piece.unit_dims,
                first_unit,
            )
            yield one, [piece.first_unit + group * outputs + number for number in inside[1]]
            first_unit += one.units


def _cut_within(cut: Cut | None, region: tuple[range, ...]) -> tuple[Cut | None, tuple[range, ...]]:
    """A cut of a shard, and where in the cut of the whole its elements are."""
    if cut is None:
        return None, region
    along = _overlap(region[cut.dim], range(cut.start, cut.start + cut.length))
    own = Cut(cut.dim, along.start - region[cut.dim].start, len(along), cut.stacked)
    inside = list(region)
    inside[cut.dim] = range(along.start - cut.start, along.stop - cut.start)
    if cut.stacked and along:
        del inside[cut.dim]
    return own, tuple(inside)


def _overlap(one: range, other: range) -> range:
    start, stop = max(one.start, other.start), min(one.stop, other.stop)
    return range(start, max(start, stop))


def _has_parts(piece: LayerSlice, region: tuple[range, ...]) -> bool:
    dims = len(region) - (piece.cut is not None and piece.cut.stacked)
    return len(piece.view) > dims + (len(piece.unit_dims) == 2)
