"""Which slices of which gradients share a center and a scale, and what acts on each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from znorm import kernels
from znorm.moments import Affine, Moments
from znorm.selection import Origin, Selector, origins
from znorm.transforms.clip import ClipValue
from znorm.transforms.composition import Chain, Link, Transform, links, stages

__all__ = ["Description", "Layout", "Row"]


@dataclass(frozen=True)
class Row:
    """One parameter of a layout.

    Parameters
    ----------
    name : str
        As shown in messages.
    shape : tuple of int
    acts : tuple of bool
        For each link whether it acts on this tensor.
    why : str
        Why it is transformed in this way, or why not.
    view : tuple of int
        The shape in which units are counted: ``shape``, with dim 0 split where a transposed
        convolution has groups.
    unit_dims : tuple of int
        The dims of ``view`` that number the units; none if the tensor is one unit.
    first, units : int
        Its place among all units; no units if nothing measures it.
    kernel : str
        Which kernels serve it.
    """

    name: str
    shape: tuple[int, ...]
    acts: tuple[bool, ...]
    why: str
    view: tuple[int, ...]
    unit_dims: tuple[int, ...]
    first: int
    units: int
    kernel: str

    @property
    def transformed(self) -> bool:
        return any(self.acts)

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "shape": self.shape,
            "units": self.units,
            "kernel": self.kernel,
            "transformed": self.transformed,
            "why": self.why,
        }


@dataclass(frozen=True)
class Description:
    """A table of parameters: ``str()`` prints it, ``rows`` are its dicts."""

    rows: tuple[dict[str, Any], ...]

    def __str__(self) -> str:
        table = [["name", "shape", "units", "kernel", "transformed"]]
        for row in self.rows:
            done = ("yes: " if row["transformed"] else "no: ") + row["why"]
            table.append([row["name"], str(row["shape"]), str(row["units"]), row["kernel"], done])
        widths = [max(len(line[column]) for line in table) for column in range(5)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in table
        )


@dataclass(frozen=True)
class _Scope:
    """The units that one link acts on, and how they pool into the link's own units."""

    index: Tensor | None
    segment: Tensor | None
    pooled: int

    def affine(self, link: Any, moments: Moments) -> Affine:
        """The link's map for all units of ``moments``: the identity where it does not act."""
        scoped = moments if self.index is None else moments.take(self.index)
        pooled = scoped if self.segment is None else scoped.pool(self.segment, self.pooled)
        affine: Affine = link.decide(pooled)
        center, scale = affine.center, affine.scale
        if self.segment is not None:
            center, scale = center[self.segment], scale[self.segment]
        if self.index is not None:
            center = torch.zeros_like(moments.mean).index_copy_(0, self.index, center)
            scale = torch.ones_like(moments.mean).index_copy_(0, self.index, scale)
        return Affine(center, scale)


class Layout:
    """Parameters, what a transform does to each, and where its units lie.

    Made from parameters, never from gradients, so that it is the same on every process and in
    every step.

    Parameters
    ----------
    named_parameters : iterable of (str, Tensor) or of Tensor
        As ``model.named_parameters()`` gives them. Gradients are later expected in this order.
    transform : transform or None
        None and ``chain()`` leave everything alone.
    model : torch.nn.Module, optional
        Tells the type of the module that owns each parameter: which are normalizations, and which
        axis is the output of a transposed convolution.
    origins : sequence of Origin, optional
        What is known of each parameter, in place of ``model``.

    Raises
    ------
    TypeError, ValueError
        Naming the parameter or rule, what was found and what to do.

    Examples
    --------
    >>> import torch, znorm
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    >>> layout = znorm.Layout(net.named_parameters(), znorm.Centralize(), model=net)
    >>> print(layout.describe())
    name      shape         units  kernel     transformed
    0.weight  (8, 3, 3, 3)  8      reference  yes: Centralize by axis 0
    0.bias    (8,)          0      reference  no: one dimension
    1.weight  (8,)          0      reference  no: one dimension
    1.bias    (8,)          0      reference  no: one dimension
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str | None, Tensor] | Tensor],
        transform: Transform | None,
        *,
        model: nn.Module | None = None,
        origins: Sequence[Origin] | None = None,
    ) -> None:
        named = _named(named_parameters)
        known = tuple(origins) if origins is not None else _origins(named, model)
        self.transform: Transform = Chain() if transform is None else transform
        self.links = links(self.transform)
        self.rows = _rows(named, known, self.links)
        self.units = sum(row.units for row in self.rows)
        measured = [tensor for (_, tensor), row in zip(named, self.rows, strict=True) if row.units]
        self.device = measured[0].device if measured else torch.device("cpu")
        self._scopes: dict[tuple[int, torch.device], _Scope | None] = {}
        self._owners: dict[torch.device, Tensor] = {}
        runs = stages(self.transform)
        self.stages: tuple[Layout, ...] = (self,)
        if len(runs) > 1:
            # One layout a reading: what a later reading needs does not slow an earlier one down.
            self.stages = tuple(Layout(named, Chain(run), origins=known) for run in runs)
        sizes = [
            math.prod(row.shape) // row.units if row.units else 0
            for row in self.rows
            for _ in range(row.units)
        ]
        dtype = kernels.reference.statistics_dtype(self.device)
        self.count = torch.tensor(sizes, dtype=dtype, device=self.device)

    @property
    def elementwise(self) -> bool:
        """Whether the whole layout is one elementwise link."""
        return len(self.links) == 1 and isinstance(self.links[0], ClipValue)

    def describe(self) -> Description:
        """The table of parameters: name, shape, units, kernel, transformed or why not."""
        return Description(tuple(row.as_dict() for row in self.rows))

    def decide(self, moments: Moments, factor: Tensor | None = None) -> Affine:
        """The one map that the links' maps compose to, ``factor`` times the gradient first."""
        device = moments.mean.device
        moments = self._spread_nonfinite(moments)
        total = Affine(torch.zeros_like(moments.mean), torch.ones_like(moments.mean), self)
        if factor is not None:
            total.scale *= factor.to(device, total.scale.dtype)
            moments = moments.after(total)
        for position, link in enumerate(self.links):
            scope = self._scope(position, device)
            if scope is None:
                continue
            affine = scope.affine(link, moments)
            total = total.then(affine)
            moments = moments.after(affine)
        return total

    def _spread_nonfinite(self, moments: Moments) -> Moments:
        """A tensor that holds NaN or inf anywhere is NaN in all of its units."""
        bad = ~(torch.isfinite(moments.mean) & torch.isfinite(moments.m2))
        if any(row.units > 1 for row in self.rows):
            owner = self._owner(moments.mean.device)
            count = bad.to(moments.mean.dtype)
            bad = count.new_zeros(len(self.rows)).index_add_(0, owner, count)[owner] > 0
        nan = float("nan")
        return Moments(
            moments.count,
            torch.where(bad, nan, moments.mean),
            torch.where(bad, nan, moments.m2),
            self,
        )

    def _owner(self, device: torch.device) -> Tensor:
        """For each unit the number of its row."""
        if device not in self._owners:
            rows = [number for number, row in enumerate(self.rows) for _ in range(row.units)]
            self._owners[device] = torch.tensor(rows, dtype=torch.int64, device=device)
        return self._owners[device]

    def _scope(self, position: int, device: torch.device) -> _Scope | None:
        key = (position, device)
        if key not in self._scopes:
            self._scopes[key] = self._make_scope(position, device)
        return self._scopes[key]

    def _make_scope(self, position: int, device: torch.device) -> _Scope | None:
        link: Any = self.links[position]
        acting = [row for row in self.rows if row.units and row.acts[position]]
        if not acting:
            return None
        index = [unit for row in acting for unit in range(row.first, row.first + row.units)]
        segment: list[int] | None = None
        pooled = len(index)
        if link.joint:
            segment, pooled = [0] * len(index), 1
        elif link.granularity == "tensor" and any(row.units > 1 for row in acting):
            segment = [number for number, row in enumerate(acting) for _ in range(row.units)]
            pooled = len(acting)
        return _Scope(
            None if len(index) == self.units else torch.tensor(index, device=device),
            None if segment is None else torch.tensor(segment, device=device),
            pooled,
        )


def _named(
    parameters: Iterable[tuple[str | None, Tensor] | Tensor],
) -> list[tuple[str | None, Tensor]]:
    if isinstance(parameters, Tensor):
        raise TypeError("layout: expected a list of parameters, found one tensor; put it in a list")
    named: list[tuple[str | None, Tensor]] = []
    for position, item in enumerate(parameters):
        pair = item if isinstance(item, tuple) else (None, item)
        if (
            len(pair) != 2
            or not isinstance(pair[1], Tensor)
            or not isinstance(pair[0], str | type(None))
        ):
            raise TypeError(
                f"layout: entry {position} must be a tensor or (name, tensor), found {item!r}"
            )
        named.append(pair)
    return named


def _origins(
    named: Sequence[tuple[str | None, Tensor]], model: nn.Module | None
) -> tuple[Origin, ...]:
    known = {} if model is None else origins(model)
    if model is not None and named and not any(id(tensor) in known for _, tensor in named):
        raise ValueError(
            "model: none of the parameters belongs to it; pass the very model whose parameters "
            "are trained, not a copy"
        )
    return tuple(known.get(id(tensor), Origin(name)) for name, tensor in named)


def _rows(
    named: Sequence[tuple[str | None, Tensor]], known: Sequence[Origin], found: Sequence[Link]
) -> tuple[Row, ...]:
    selectors = [
        Selector(
            type(link).__name__,
            link.select,
            type(link).__dataclass_fields__["select"].default,  # type: ignore[union-attr]
            link.skips_single_elements,
        )
        for link in found
    ]
    rows: list[Row] = []
    first = 0
    for position, ((label, tensor), origin) in enumerate(zip(named, known, strict=True)):
        if isinstance(tensor, nn.UninitializedParameter):
            raise ValueError(
                f"{label or position}: not initialized yet; run one forward pass first"
            )
        name = label or origin.name or f"parameter {position} {tuple(tensor.shape)}"
        reasons = [selector.why_not(tensor, origin, name) for selector in selectors]
        acts = tuple(reason is None for reason in reasons)
        if any(acts):
            _check_supported(name, tensor)
        view, unit_dims = _units(tensor, origin, found, acts)
        measured = any(
            act and not isinstance(link, ClipValue) for link, act in zip(found, acts, strict=True)
        )
        units = math.prod(view[d] for d in unit_dims) if measured else 0
        rows.append(
            Row(
                name,
                tuple(tensor.shape),
                acts,
                _explain(found, reasons, unit_dims, origin),
                view,
                unit_dims,
                first,
                units,
                kernels.choose(tensor).NAME,
            )
        )
        first += units
    if named:
        for selector in selectors:
            selector.check_all_matched()
    return tuple(rows)


def _units(
    tensor: Tensor, origin: Origin, found: Sequence[Link], acts: Sequence[bool]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The view in which units are counted, and its unit dims."""
    shape = tuple(tensor.shape)
    by_channel = any(
        act and getattr(link, "granularity", "") == "channel"
        for link, act in zip(found, acts, strict=True)
    )
    # A vector has no dim to average over but the output one: it stays one unit.
    if not by_channel or tensor.dim() < 2 or tensor.numel() == 0:
        return shape, ()
    if origin.transposed:
        # The weight is (in, out / groups, ...), its first dim running over groups.
        view = (origin.transposed, shape[0] // origin.transposed, *shape[1:])
        return view, (0, 2)
    return shape, (0,)


def _check_supported(name: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        raise TypeError(
            f"{name}: {tensor.dtype} is not supported, only real floating point; "
            'leave it out by a rule of select, such as ("NAME", False)'
        )
    # A shard's own statistics would be silently wrong; named by duck type, since importing
    # torch.distributed.tensor costs 0.2 s.
    if hasattr(tensor, "placements") and hasattr(tensor, "device_mesh"):
        raise TypeError(
            f"{name}: sharded tensors (DTensor) are not supported yet; "
            'leave it out by a rule of select, such as ("NAME", False)'
        )


def _explain(
    found: Sequence[Link], reasons: Sequence[str | None], unit_dims: tuple[int, ...], origin: Origin
) -> str:
    if not found:
        return "no transform"
    acting = [link for link, reason in zip(found, reasons, strict=True) if reason is None]
    if not acting:
        return ", ".join(dict.fromkeys(reason for reason in reasons if reason is not None))
    parts = []
    for link in acting:
        part = type(link).__name__
        if getattr(link, "granularity", "") == "channel" and unit_dims:
            axis = "1" if unit_dims == (0, 2) else "0"
            part += f" by axis {axis}" + ("" if origin.module else ", assumed")
        parts.append(part)
    text = ", ".join(parts)
    left_out = [
        f"not {type(link).__name__}: {reason}"
        for link, reason in zip(found, reasons, strict=True)
        if reason is not None
    ]
    return "; ".join([text, *left_out])
