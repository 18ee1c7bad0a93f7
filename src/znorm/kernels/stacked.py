"""Reference kernels for many tensors at once: units of one size are the rows of one matrix.

A GPU is told each operation by the host, and of a small tensor that takes longer than the
arithmetic. Tensor by tensor the reference takes about twenty operations where the formula in a loop
takes five; here a matrix takes six to be measured and six to be written, however many tensors are
in it, and nets repeat their shapes. Sums are those of `reference`, shifted and in float64. What
that costs: a copy of the gradients, and one in float64, which is why a matrix has an upper size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce

import torch
from torch import Tensor

from znorm._torch_internals import is_traced
from znorm.kernels import reference
from znorm.layers import LayerSlice

__all__ = ["apply_", "measures", "moments", "writes"]

# Elements of a matrix: on a CPU in float64 1 MiB, which stays in its caches, elsewhere 128 MiB.
_MOST_ON_CPU, _MOST = 1 << 17, 1 << 24

_View = tuple[LayerSlice, Tensor]


def measures(piece: LayerSlice, view: Tensor) -> bool:
    """True if a layer is to be measured here; by itself where a trace or autograd looks on.

    A CPU has a shorter way with a layer that is one unit.
    """
    alone = view.device.type == "cpu" and not piece.unit_dims
    return not (alone or torch.is_grad_enabled() or view.requires_grad or is_traced())


def writes(view: Tensor) -> bool:
    """True if a layer is to be written here: a CPU loses more by the copies than by the calls."""
    return view.device.type != "cpu" and not (torch.is_grad_enabled() or is_traced())


def moments(views: Sequence[_View], count: Tensor) -> list[Tensor]:
    """Mean and sum of squared deviations of layers.

    Parameters
    ----------
    views : sequence of (LayerSlice, Tensor)
        Each with its own part of a gradient, of at least one element.
    count : Tensor of shape (units of the layout,)
        Elements of each unit.

    Returns
    -------
    list of Tensor of shape (2, units)
        For each layer.
    """
    measured: dict[int, Tensor] = {}
    groups = _groups(views)
    for device in dict.fromkeys(view.device for _, view in views):
        here = [group for group in groups if views[group[0]][1].device == device]
        sums = [part for group in here for part in _sums([_rows(*views[n]) for n in group])]
        numbers = [number for group in here for number in group]
        pieces = [views[number][0] for number in numbers]
        n = count.to(device)
        n = torch.cat([n[p.first_unit : p.first_unit + p.units] for p in pieces])
        shift, total, squares = map(torch.cat, zip(*sums, strict=True))
        both = reference.finish(shift, total, squares, n)
        measured.update(zip(numbers, both.split([p.units for p in pieces], 1), strict=True))
    return [measured[number] for number in range(len(views))]


def _sums(matrices: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Shift, sum and sum of squares of the rows of matrices, so many rows at a time."""
    matrix = matrices[0] if len(matrices) == 1 else torch.cat(list(matrices))
    dtype = reference.statistics_dtype(matrix.device)
    for rows in matrix.split(max(1, _most(matrix) // matrix.shape[1])):
        shift = rows[:, :1].to(dtype)
        totals, squares = [], []
        for columns in rows.split(_most(matrix), 1):
            deviation = columns - shift
            totals.append(deviation.sum(1))
            squares.append(deviation.square_().sum(1))
        yield shift[:, 0], reduce(torch.add, totals), reduce(torch.add, squares)


def apply_(views: Sequence[_View], centers: tuple[Tensor, ...], scale: Tensor) -> None:
    """``g = (g - center) * scale`` in place, in float32 or wider, rounded once.

    Parameters
    ----------
    views : sequence of (LayerSlice, Tensor)
        Written; of one dtype on one device.
    centers, scale : Tensor of shape (units of the layout,)
        Of `reference.split`.
    """
    coefficients = torch.stack([*centers, scale])
    for group in _groups(views):
        if len(group) == 1:
            piece, view = views[group[0]]
            *lows, factor = (piece.broadcast(one) for one in coefficients.unbind(0))
            reference.apply_(view, tuple(lows), factor)
            continue
        pieces = [views[number][0] for number in group]
        chosen = [coefficients[:, p.first_unit : p.first_unit + p.units] for p in pieces]
        *lows, factor = torch.cat(chosen, 1)[..., None].unbind(0)
        matrix = torch.cat([_rows(*views[number]) for number in group])
        reference.apply_(matrix, tuple(lows), factor)
        written = [_in_rows_order(*views[number]) for number in group]
        parts = matrix.split([piece.units for piece in pieces])
        torch._foreach_copy_(
            written, [part.view(target.shape) for part, target in zip(parts, written, strict=True)]
        )


def _groups(views: Sequence[_View]) -> list[list[int]]:
    """The numbers of layers whose units have one size, of one dtype on one device, a list each."""
    open_: dict[tuple[torch.device, torch.dtype, int], list[int]] = {}
    elements: dict[tuple[torch.device, torch.dtype, int], int] = {}
    groups: list[list[int]] = []
    for number, (piece, view) in enumerate(views):
        key = (view.device, view.dtype, piece.size)
        more = elements.get(key, 0) + view.numel()
        if key not in open_ or more > _most(view):
            open_[key], more = [], view.numel()
            groups.append(open_[key])
        open_[key].append(number)
        elements[key] = more
    return groups


def _most(tensor: Tensor) -> int:
    return _MOST_ON_CPU if tensor.device.type == "cpu" else _MOST


def _rows(piece: LayerSlice, view: Tensor) -> Tensor:
    """A layer as a matrix with a row for each unit: no copy for a dense memory format."""
    return _in_rows_order(piece, view).reshape(piece.units, piece.size)


def _in_rows_order(piece: LayerSlice, view: Tensor) -> Tensor:
    """A layer with its dims in the order of its matrix: units first, else as memory has them."""
    if view.is_contiguous() and piece.unit_dims in ((), (0,)):
        return view
    if not piece.unit_dims:
        return view.permute(sorted(range(view.dim()), key=view.stride, reverse=True))
    rest = [d for d in range(view.dim()) if d not in piece.unit_dims]
    return view.permute(*piece.unit_dims, *rest)
