"""Receipts: what was done to each tensor, as running sums over steps.

A pass over gradients gives a `Report`; `Receipt.add` counts it. Where gradients are measured
anyway, a report is arithmetic on moments and coefficients and reads nothing more; kernels that
decide by themselves add to the sums by themselves. Nothing waits for the device until a receipt is
read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from znorm.engine.decide import Decision
from znorm.engine.exchange import exchange_of
from znorm.layout import Layout
from znorm.moments import Moments, sum_by

__all__ = ["FIELDS", "Readings", "Receipt", "Report"]

FIELDS = ("norm_before", "norm_after", "mean", "std", "cosine", "clipped")


@dataclass(frozen=True)
class Report:
    """The record of one pass over gradients: each field has an entry a tensor of the receipt.

    Parameters
    ----------
    before : Moments
        Of the gradients; their count is 0 where one is missing.
    norm_after : Tensor
    dot : Tensor
        The product of the gradients before and after.
    clipped : Tensor
        1 where a clip acted.
    """

    before: Moments
    norm_after: Tensor
    dot: Tensor
    clipped: Tensor


@dataclass(frozen=True)
class Readings:
    """The sums of gradients that were read before and after, a row each.

    Parameters
    ----------
    rows : tuple of int
        Of the receipt.
    sizes : tuple of int
        Their elements.
    sums : Tensor of shape (gradients, 4)
        Sum, sum of squares, product of before and after, sum of squares after.
    clipped : Tensor of shape (gradients,), bool
        Whether a clip acted on it.
    """

    rows: tuple[int, ...]
    sizes: tuple[int, ...]
    sums: Tensor
    clipped: Tensor


class Receipt:
    """Running sums of what happened to each transformed tensor of a layout.

    Parameters
    ----------
    layout : Layout
    earlier : sequence of Tensor or None
        For each entry of the layout sums of :meth:`sums_of` to go on from.

    Attributes
    ----------
    sums : Tensor of shape (tensors, 7)
        A column a field, the last one counting steps. Kernels write there what they do themselves.
    row_of_unit : Tensor of shape (units of the layout,), int64
        The row of ``sums`` that each unit belongs to. A tensor can have several units, or none:
        the number of a unit is no row.
    """

    def __init__(self, layout: Layout, earlier: Sequence[Tensor | None] = ()) -> None:
        selected = [index for index, entry in enumerate(layout.entries) if entry.selected]
        self._layout = layout
        self._selected = torch.tensor(selected, dtype=torch.int64, device=layout.device)
        self.names = [layout.entries[index].name for index in selected]
        self._row_of = {index: row for row, index in enumerate(selected)}
        units = [row for row, i in enumerate(selected) for _ in range(layout.entries[i].units)]
        self._counted: dict[tuple[tuple[int, int], ...], tuple[Tensor, Tensor]] = {}
        self.row_of_unit = torch.tensor(units, dtype=torch.int64, device=layout.device)
        self._one_unit_each = units == list(range(len(selected)))
        self.sums = torch.zeros(
            len(selected), len(FIELDS) + 1, dtype=layout.count.dtype, device=layout.device
        )
        for index, sums in enumerate(earlier):
            if sums is not None and index in self._row_of:
                self.sums[self._row_of[index]] = sums

    def reset(self) -> None:
        """Begin anew; in place, so that captured steps go on writing where they were captured."""
        with torch.no_grad():
            self.sums.zero_()

    def sums_of(self, index: int) -> Tensor | None:
        """The running sums of an entry of the layout, for a receipt that goes on from them."""
        return self.sums[self._row_of[index]] if index in self._row_of else None

    @torch.no_grad()
    def of_decision(self, decision: Decision) -> Report:
        """The report of a pass whose decision came from moments."""
        before, after = self._by_tensor(decision.before), self._by_tensor(decision.after)
        units, affine = decision.before, decision.unscaled
        # The sum of g * g_hat, written so that it does not cancel where the mean is large.
        dot = affine.scale * (units.m2 + units.count * units.mean * (units.mean - affine.center))
        clipped = torch.zeros_like(dot) if decision.clipped is None else decision.clipped.to(dot)
        return Report(before, after.norm(), self._total(dot), (self._total(clipped) > 0).to(dot))

    def readings(
        self, indices: Sequence[int], sizes: Sequence[int], sums: Tensor, clipped: Tensor
    ) -> Readings:
        """The readings of entries' gradients."""
        rows = tuple(self._row_of[index] for index in indices)
        return Readings(rows, tuple(sizes), sums, clipped)

    @torch.no_grad()
    def of_readings(self, readings: Sequence[Readings], inv_scale: Tensor | None) -> Report:
        """The report of a pass of which gradients were read before and after.

        Parameters
        ----------
        readings : sequence of Readings
        inv_scale : Tensor of one element, optional
            What gradients were multiplied by before they were read as they are after.
        """
        like = self.sums
        rows, count = self._counts(
            tuple(pair for some in readings for pair in zip(some.rows, some.sizes, strict=True))
        )
        sums = torch.cat([like.new_zeros(0, 4), *(some.sums.to(like) for some in readings)])
        acted = torch.cat([like.new_zeros(0), *(some.clipped.to(like) for some in readings)])
        total, square, dot, after = like.new_zeros(4, len(like)).index_copy_(1, rows, sums.T)
        clipped = torch.zeros_like(count).index_copy_(0, rows, acted)
        if self._layout.sharded:
            together = torch.stack([total, square, dot, after, clipped, count], 1)
            total, square, dot, after, clipped, count = self._of_all_processes(together).unbind(1)
            clipped = (clipped > 0).to(like)
        if inv_scale is not None:
            scale = inv_scale.to(like)
            total, square, dot = total * scale, square * scale * scale, dot * scale
        mean = total / count.clamp(min=1)
        m2 = (square - total * mean).clamp(min=0)
        return Report(Moments(count, mean, m2), after.sqrt(), dot, clipped)

    def _of_all_processes(self, values: Tensor) -> Tensor:
        """Sums over the processes of numbers of each tensor, of shape (tensors, numbers)."""
        every = values.new_zeros(len(self._layout.entries), values.shape[1])
        every[self._selected] = values
        return exchange_of(self._layout).totals(every)[self._selected]

    def _counts(self, sizes: tuple[tuple[int, int], ...]) -> tuple[Tensor, Tensor]:
        """The rows that were read, and the elements of each row; copied to a GPU once."""
        if sizes not in self._counted:
            like = self.sums
            rows = torch.tensor([row for row, _ in sizes], dtype=torch.int64, device=like.device)
            elements = torch.tensor([size for _, size in sizes], device=like.device)
            count = torch.zeros_like(like[:, 0]).index_copy_(0, rows, elements.to(like))
            self._counted[sizes] = rows, count
        return self._counted[sizes]

    @torch.no_grad()
    def add(self, report: Report, found_inf: Tensor | None = None) -> None:
        """Count a step.

        Parameters
        ----------
        report : Report
        found_inf : Tensor of one element, optional
            Not 0 if the optimizer will skip this step, which is then not counted.
        """
        before, norm = report.before, report.before.norm()
        present = before.count > 0
        both = norm * report.norm_after
        cosine = torch.where(both == 0, 0.0, (report.dot / both).clamp(-1, 1))
        values = (norm, report.norm_after, before.mean, before.std(), cosine, report.clipped)
        if found_inf is not None:
            present = present & (found_inf.to(present.device) == 0)
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
        means: dict[str, dict[str, float]] = {}
        for name, row in zip(self.names, self.sums.tolist(), strict=True):
            steps = row.pop()
            if steps:
                means[name] = dict(zip(FIELDS, (value / steps for value in row), strict=True))
                means[name]["steps"] = int(steps)
        return means
