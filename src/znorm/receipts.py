"""Receipts: what a transform did to each layer, as means over the steps since it was attached.

Where gradients are measured anyway, a receipt is arithmetic on moments and coefficients and reads
nothing more. Nothing waits for the device until a receipt is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from znorm.kernels import reference
from znorm.layout import Decision, Layout
from znorm.moments import Moments, sum_by

__all__ = ["FIELDS", "Look", "Receipt", "write"]

# Elements up to which what is clamped is read in float64.
_SMALL = 1 << 16

FIELDS = ("norm_before", "norm_after", "mean", "std", "cosine", "clipped")


class Receipt:
    """Running sums of what happened to each transformed tensor of a layout.

    Parameters
    ----------
    layout : Layout
    earlier : sequence of Tensor or None
        For each row of the layout sums of :meth:`sums_of` to go on from.

    Attributes
    ----------
    sums : Tensor of shape (tensors, 7)
        A column a field, the last one counting steps. Kernels write there what they do themselves.
    row_of_unit : Tensor of shape (units of the layout,), int64
        The row of ``sums`` that each unit belongs to. A tensor can have several units, or none:
        the number of a unit is no row.
    """

    def __init__(self, layout: Layout, earlier: Sequence[Tensor | None] = ()) -> None:
        rows = [number for number, row in enumerate(layout.rows) if row.selected]
        self.names = [layout.rows[number].name for number in rows]
        self._place = {number: place for place, number in enumerate(rows)}
        measured = [layout.rows[number].units for number in rows]
        units = [place for place, several in enumerate(measured) for _ in range(several)]
        self._known: dict[tuple[tuple[int, int], ...], tuple[Tensor, Tensor]] = {}
        self.row_of_unit = torch.tensor(units, dtype=torch.int64, device=layout.device)
        self._one_unit_each = units == list(range(len(rows)))
        self.sums = torch.zeros(
            len(rows), len(FIELDS) + 1, dtype=layout.count.dtype, device=layout.device
        )
        for number, sums in enumerate(earlier):
            if sums is not None and number in self._place:
                self.sums[self._place[number]] = sums

    def sums_of(self, row: int) -> Tensor | None:
        """The running sums of a row of the layout, for a receipt that goes on from them."""
        return self.sums[self._place[row]] if row in self._place else None

    @torch.no_grad()
    def record(self, decision: Decision, skipped: Tensor | None = None) -> None:
        """Add one step whose decision came from moments.

        Parameters
        ----------
        decision : Decision
        skipped : Tensor of one element, optional
            Not 0 if the optimizer will skip this step, which is then not counted.
        """
        before, after = self._by_tensor(decision.before), self._by_tensor(decision.after)
        units, links = decision.before, decision.links
        # The sum of g * g_hat, written so that it does not cancel where the mean is large.
        dot = links.scale * (units.m2 + units.count * units.mean * (units.mean - links.center))
        clipped = torch.zeros_like(dot) if decision.clipped is None else decision.clipped.to(dot)
        self._add(
            before,
            after.norm(),
            self._total(dot),
            (self._total(clipped) > 0).to(dot),
            before.count > 0,
            skipped,
        )

    def look(self, row: int, before: Tensor, after: Tensor, clipped: Tensor) -> Look:
        """What reading a gradient before and after tells, for :meth:`compare`.

        Parameters
        ----------
        row : int
            Of the layout.
        before, after : Tensor
        clipped : Tensor of one element, bool
            Whether a clip acted on it.
        """
        g, h = (_flat(tensor) for tensor in (before, after))
        read = torch.stack([g.sum(), torch.dot(g, g), torch.dot(g, h), torch.dot(h, h)])
        return Look(self._place[row], g.numel(), read, clipped)

    def seen(self, row: int, size: int, read: Tensor, clipped: Tensor) -> Look:
        """As :meth:`look`, of what a kernel has read: sum, square, dot product, square after."""
        return Look(self._place[row], size, read, clipped)

    @torch.no_grad()
    def compare(
        self, looks: Sequence[Look], factor: Tensor | None, skipped: Tensor | None = None
    ) -> None:
        """Add one step of which gradients were read before and after.

        Parameters
        ----------
        looks : sequence
            Of :meth:`look`.
        factor : Tensor of one element, optional
            What gradients were multiplied by before they were read as they are after.
        skipped : Tensor of one element, optional
            As in :meth:`record`.
        """
        if not looks:
            return
        sums = self.sums
        places, count = self._counts(tuple((look.place, look.size) for look in looks))
        read = torch.stack([look.read.to(sums) for look in looks])
        acted = torch.stack([look.clipped.to(sums) for look in looks])
        total, square, dot, after = sums.new_zeros(4, len(sums)).index_copy_(1, places, read.T)
        clipped = torch.zeros_like(count).index_copy_(0, places, acted)
        if factor is not None:
            scale = factor.to(sums)
            total, square, dot = total * scale, square * scale * scale, dot * scale
        mean = total / count.clamp(min=1)
        m2 = (square - total * mean).clamp(min=0)
        moments = Moments(count, mean, m2)
        self._add(moments, after.sqrt(), dot, clipped, count > 0, skipped)

    def _counts(self, looks: tuple[tuple[int, int], ...]) -> tuple[Tensor, Tensor]:
        """Places that were looked at, and the elements of each place; copied to a GPU once."""
        if looks not in self._known:
            sums = self.sums
            places = torch.tensor([place for place, _ in looks], device=sums.device)
            sizes = torch.tensor([size for _, size in looks], device=sums.device)
            count = torch.zeros_like(sums[:, 0]).index_copy_(0, places, sizes.to(sums))
            self._known[looks] = places, count
        return self._known[looks]

    def _add(
        self,
        before: Moments,
        norm_after: Tensor,
        dot: Tensor,
        clipped: Tensor,
        present: Tensor,
        skipped: Tensor | None,
    ) -> None:
        norm = before.norm()
        both = norm * norm_after
        cosine = torch.where(both == 0, 0.0, (dot / both).clamp(-1, 1))
        values = (norm, norm_after, before.mean, before.std(), cosine, clipped)
        if skipped is not None:
            present = present & (skipped.to(present.device) == 0)
        step = torch.stack([*values, torch.ones_like(norm)], 1).to(self.sums.device)
        self.sums.add_(torch.where(present.to(step.device)[:, None], step, 0.0))

    def _by_tensor(self, units: Moments) -> Moments:
        if self._one_unit_each:
            return units
        return units.pool(self.row_of_unit.to(units.mean.device), len(self.names))

    def _total(self, values: Tensor) -> Tensor:
        if self._one_unit_each:
            return values
        segment = self.row_of_unit.to(values.device)
        return sum_by(values, segment, len(self.names))

    def as_dict(self) -> dict[str, dict[str, float]]:
        """Means over the steps of each tensor, and how many steps; waits for the device."""
        found: dict[str, dict[str, float]] = {}
        for name, row in zip(self.names, self.sums.tolist(), strict=True):
            steps = row.pop()
            if steps:
                means = (value / steps for value in row)
                found[name] = dict(zip(FIELDS, means, strict=True))
                found[name]["steps"] = int(steps)
        return found


@dataclass(frozen=True)
class Look:
    """Sum, square, dot product and square after of one gradient."""

    place: int
    size: int
    read: Tensor
    clipped: Tensor


def _flat(tensor: Tensor) -> Tensor:
    """One-dimensional and real; float64 where that costs little, else float32 or wider."""
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    flat = real.detach().reshape(-1)
    small = flat.numel() <= _SMALL
    wide = reference.statistics_dtype(flat.device) if small else torch.float32
    return flat.to(torch.promote_types(flat.dtype, wide))


class Writer(Protocol):
    """The part of ``torch.utils.tensorboard.SummaryWriter`` that is used."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any: ...


def write(
    writer: Writer, receipt: Mapping[str, Mapping[str, float]], step: int, prefix: str = "znorm"
) -> None:
    """Write a receipt as TensorBoard scalars, ``prefix/FIELD/NAME``.

    Parameters
    ----------
    writer : torch.utils.tensorboard.SummaryWriter
        Or anything that has its ``add_scalar``.
    receipt : dict
        Of ``attachment.receipt()``.
    step : int
        Where on the axis of steps it stands.
    prefix : str, default "znorm"

    Examples
    --------
    >>> class Printer:
    ...     def add_scalar(self, tag, value, step):
    ...         print(tag, value, step)
    >>> from znorm import receipts
    >>> receipts.write(Printer(), {"weight": {"norm_before": 0.5, "steps": 2}}, step=2)
    znorm/norm_before/weight 0.5 2
    """
    for name, values in receipt.items():
        for field in FIELDS:
            if field in values:
                writer.add_scalar(f"{prefix}/{field}/{name}", values[field], step)
