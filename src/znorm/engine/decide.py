"""Deciding: moments in, one affine map a unit out. Nothing here reads a gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from znorm.layout import Layout
from znorm.moments import Affine, Moments, sum_by
from znorm.transforms.base import Transform

__all__ = ["Decision", "by_entry", "decide"]


@dataclass
class Decision:
    """The maps that a chain makes of moments, and what a receipt needs to know of them.

    Parameters
    ----------
    affine : Affine
        The one map of all that is done, an inverse loss scale first.
    unscaled : Affine
        The transforms' map alone, which see the gradients without the loss scale.
    before, after : Moments
        Of what the transforms see, and of what they make of it.
    clipped : Tensor of shape (units,), bool, or None
        Where a clip acted; None if no transform is one.
    """

    affine: Affine
    unscaled: Affine
    before: Moments
    after: Moments
    clipped: Tensor | None


def decide(
    layout: Layout,
    moments: Moments,
    inv_scale: Tensor | None = None,
    parameters: Moments | None = None,
) -> Decision:
    """Compose the maps of a layout's transforms, ``inv_scale`` times the gradient before them."""
    device = moments.mean.device
    moments = _spread_nonfinite(layout, moments)
    start = _identity(layout, moments)
    if inv_scale is not None:
        start.scale = start.scale * inv_scale.to(device, start.scale.dtype)
        moments = moments.after(start)
    before = moments
    total = _identity(layout, moments)
    clipped: Tensor | None = None
    for position, transform in enumerate(layout.transforms):
        scope = _scope(layout, position, device)
        if scope is None or not transform.writes:
            continue
        affine = scope.affine(transform, moments, parameters)
        if transform.is_clip:
            acted = affine.scale < 1
            clipped = acted if clipped is None else clipped | acted
        total = total.then(affine)
        moments = moments.after(affine)
    whole = total if inv_scale is None else start.then(total)
    return Decision(whole, total, before, moments, clipped)


def by_entry(layout: Layout, flags: Tensor) -> Tensor:
    """A flag for each entry of a layout: whether any of its units has one."""
    owner = _owner(layout, flags.device)
    return sum_by(flags.to(layout.count.dtype), owner, len(layout.entries)) > 0


def _identity(layout: Layout, moments: Moments) -> Affine:
    return Affine(torch.zeros_like(moments.mean), torch.ones_like(moments.mean), layout)


def _spread_nonfinite(layout: Layout, moments: Moments) -> Moments:
    """A tensor that holds NaN or inf anywhere is NaN in all of its units."""
    bad = ~(torch.isfinite(moments.mean) & torch.isfinite(moments.m2))
    if any(entry.units > 1 for entry in layout.entries):
        bad = by_entry(layout, bad)[_owner(layout, bad.device)]
    nan = float("nan")
    return Moments(
        moments.count,
        torch.where(bad, nan, moments.mean),
        torch.where(bad, nan, moments.m2),
        layout,
    )


def _owner(layout: Layout, device: torch.device) -> Tensor:
    """For each unit the index of its entry."""
    key = ("owner", device)
    if key not in layout.cache:
        indices = [index for index, entry in enumerate(layout.entries) for _ in range(entry.units)]
        layout.cache[key] = torch.tensor(indices, dtype=torch.int64, device=device)
    owner: Tensor = layout.cache[key]
    return owner


@dataclass(frozen=True)
class _Scope:
    """The units that one transform acts on, and how they pool into the transform's own units."""

    index: Tensor | None
    segment: Tensor | None
    pooled: int

    def affine(self, transform: Transform, moments: Moments, parameters: Moments | None) -> Affine:
        """The map for all units of ``moments``: the identity where the transform does not act."""
        units = self._pooled(moments)
        if transform.uses_parameters:
            assert parameters is not None
            affine = transform.decide(units, self._pooled(parameters))
        else:
            affine = transform.decide(units)
        center, scale = _checked(affine, transform, units)
        if self.segment is not None:
            center, scale = center[self.segment], scale[self.segment]
        if self.index is not None:
            center = torch.zeros_like(moments.mean).index_copy(0, self.index, center)
            scale = torch.ones_like(moments.mean).index_copy(0, self.index, scale)
        return Affine(center, scale)

    def _pooled(self, moments: Moments) -> Moments:
        scoped = moments if self.index is None else moments.take(self.index)
        return scoped if self.segment is None else scoped.pool(self.segment, self.pooled)


def _checked(affine: Affine, transform: Transform, units: Moments) -> tuple[Tensor, Tensor]:
    """The centers and scales that a transform has decided, in the units' own type."""
    shape = tuple(units.mean.shape)
    found: str = type(affine).__name__
    if isinstance(affine, Affine):
        pair = affine.center, affine.scale
        if all(isinstance(one, Tensor) and tuple(one.shape) == shape for one in pair):
            return affine.center.to(units.mean), affine.scale.to(units.mean)
        shapes = (tuple(one.shape) if isinstance(one, Tensor) else repr(one) for one in pair)
        found = "a center and a scale of {} and {}".format(*shapes)
    raise TypeError(
        f"{type(transform).__name__}.decide: expected znorm.Affine of two tensors of the shape "
        f"{shape}, a number for each unit, found {found}"
    )


def _scope(layout: Layout, position: int, device: torch.device) -> _Scope | None:
    key = ("scope", position, device)
    if key not in layout.cache:
        layout.cache[key] = _make_scope(layout, position, device)
    scope: _Scope | None = layout.cache[key]
    return scope


def _make_scope(layout: Layout, position: int, device: torch.device) -> _Scope | None:
    transform = layout.transforms[position]
    acting = [entry for entry in layout.entries if entry.units and entry.acts[position]]
    if not acting:
        return None
    index = [unit for entry in acting for unit in entry.unit_range]
    segment: list[int] | None = None
    pooled = len(index)
    if transform.granularity == "global":
        segment, pooled = [0] * len(index), 1
    elif transform.granularity == "tensor":
        slices = [piece for entry in acting for piece in entry.slices]
        segment = [number for number, piece in enumerate(slices) for _ in range(piece.units)]
        pooled = len(slices)
    return _Scope(
        None if len(index) == layout.units else torch.tensor(index, device=device),
        None if pooled == len(index) else torch.tensor(segment, device=device),
        pooled,
    )
