"""Receipts: what a transform did to each layer, as means over the steps since it was attached.

Where gradients are measured anyway, a receipt is arithmetic on moments and coefficients and reads
nothing more. Nothing waits for the device until a receipt is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from znorm import kernels
from znorm.layout import Decision, Layout
from znorm.moments import Moments

__all__ = ["FIELDS", "Receipt", "write"]

FIELDS = ("norm_before", "norm_after", "mean", "std", "cosine", "clipped")


class Receipt:
    """Running sums of what happened to each transformed tensor of a layout.

    Parameters
    ----------
    layout : Layout
    earlier : Receipt, optional
        Sums to go on from, tensor by tensor of the same name.
    """

    def __init__(self, layout: Layout, earlier: Receipt | None = None) -> None:
        rows = [number for number, row in enumerate(layout.rows) if row.selected]
        self.names = [layout.rows[number].name for number in rows]
        self._place = {number: place for place, number in enumerate(rows)}
        measured = [layout.rows[number].units for number in rows]
        units = [place for place, several in enumerate(measured) for _ in range(several)]
        self._segment = torch.tensor(units, dtype=torch.int64, device=layout.device)
        self._one_unit_each = units == list(range(len(rows)))
        # A column a field, the last one counting steps.
        self._sums = torch.zeros(
            len(rows), len(FIELDS) + 1, dtype=layout.count.dtype, device=layout.device
        )
        if earlier is not None:
            for place, name in enumerate(self.names):
                if name in earlier.names:
                    self._sums[place] = earlier._sums[earlier.names.index(name)]

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

    def keep(self, gradients: Sequence[Tensor | None], factor: Tensor | None) -> list[_Kept]:
        """Copies of the gradients that will be transformed, for :meth:`compare`."""
        return [
            _Kept(place, gradient.detach().clone(), factor)
            for number, place in self._place.items()
            if (gradient := gradients[number]) is not None and gradient.numel()
        ]

    @torch.no_grad()
    def compare(
        self,
        before: Sequence[_Kept],
        after: Sequence[Tensor | None],
        clipped: Sequence[tuple[int, Tensor]],
        skipped: Tensor | None = None,
    ) -> None:
        """Add one step by reading gradients as they were and as they are now.

        Parameters
        ----------
        before : sequence
            Of :meth:`keep`.
        after : sequence of Tensor or None
            All gradients of the layout.
        clipped : sequence of (row of the layout, Tensor of one element)
            Whether a clip acted on it.
        skipped : Tensor of one element, optional
            As in :meth:`record`.
        """
        numbers = {place: number for number, place in self._place.items()}
        count, mean, m2, norm, dot = torch.zeros(
            5, len(self.names), dtype=self._sums.dtype, device=self._sums.device
        )
        acted = torch.zeros_like(count)
        for row, value in clipped:
            acted[self._place[row]] += value.to(acted)
        for kept in before:
            now = after[numbers[kept.place]]
            assert now is not None
            one, two = _real_flat(kept.gradient), _real_flat(now.detach())
            kernel = kernels.choose(one)
            factor = 1.0 if kept.factor is None else kept.factor.to(self._sums)
            first, second = kernel.moments(one, ()), kernel.moments(two, ())
            wide = kernel.statistics_dtype(one.device)
            count[kept.place] = one.numel()
            mean[kept.place] = first[0].to(mean) * factor
            m2[kept.place] = first[1].to(mean) * factor * factor
            norm[kept.place] = (second[1] + one.numel() * second[0].square()).sqrt().to(mean)
            dot[kept.place] = torch.dot(one.to(wide), two.to(wide)).to(mean) * factor
        moments = Moments(count, mean, m2)
        self._add(moments, norm, dot, (acted > 0).to(dot), count > 0, skipped)

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
        step = torch.stack([*values, torch.ones_like(norm)], 1).to(self._sums.device)
        self._sums += torch.where(present.to(step.device)[:, None], step, 0.0)

    def _by_tensor(self, units: Moments) -> Moments:
        if self._one_unit_each:
            return units
        return units.pool(self._segment.to(units.mean.device), len(self.names))

    def _total(self, values: Tensor) -> Tensor:
        if self._one_unit_each:
            return values
        segment = self._segment.to(values.device)
        return values.new_zeros(len(self.names)).index_add_(0, segment, values)

    def as_dict(self) -> dict[str, dict[str, float]]:
        """Means over the steps of each tensor, and how many steps; waits for the device."""
        found: dict[str, dict[str, float]] = {}
        for name, row in zip(self.names, self._sums.tolist(), strict=True):
            steps = row.pop()
            if steps:
                means = (value / steps for value in row)
                found[name] = dict(zip(FIELDS, means, strict=True))
                found[name]["steps"] = int(steps)
        return found


class _Kept:
    def __init__(self, place: int, gradient: Tensor, factor: Tensor | None) -> None:
        self.place, self.gradient, self.factor = place, gradient, factor


def _real_flat(tensor: Tensor) -> Tensor:
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).reshape(-1)


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
