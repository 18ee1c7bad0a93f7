"""Reasons of a result: what the transforms did to gradients, from receipts and controls."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from znorm.lab.evidence.endings import carried_on
from znorm.lab.evidence.pairs import REFERENCE
from znorm.lab.methods import label as label_of
from znorm.lab.reporting.evidence import difference
from znorm.lab.reporting.panels import Line, Panel, line_panel
from znorm.lab.reporting.strokes import Legend, Stroke, legend_of
from znorm.lab.reporting.tables import Row, Table

__all__ = ["Why", "why"]

# ZNorm taken apart: what each control leaves of it.
CONTROLS: Mapping[str, str] = {
    "center_only": "the mean alone is taken away",
    "scale_only": "the deviation alone is divided by",
    "unit_norm": "the norm alone is divided by",
}


@dataclass(frozen=True)
class Why:
    """Sentences, and panels with what the looks of their lines stand for."""

    lines: tuple[str, ...]
    panels: tuple[Panel, ...]
    legend: Legend


# By epoch the median norm over layers, the mean over seeds.
Series = dict[int, float]


def why(table: Table, strokes: Mapping[str, Stroke] | None = None) -> Why | None:
    """The reasons of the table's result; None where nothing of them is known.

    ``strokes`` are the looks of a page's methods by their labels; by default the table's own.
    """
    before = {row.label: _series(row, "norm_before") for row in table.rows}
    after = {row.label: _series(row, "norm_after") for row in table.rows}
    lines = [*_scales(table, before, after), *_controls(table), *_clips(table)]
    looks = legend_of((row.label for row in table.rows), strokes)
    legend = tuple((label, stroke) for label, stroke in looks if before[label])
    panels: tuple[Panel, ...] = ()
    if legend:
        panels = tuple(
            line_panel(
                title,
                "epoch",
                [Line(label, stroke, series[label]) for label, stroke in legend],
                y_title="norm, median over layers",
                logarithmic=True,
            )
            for title, series in (
                ("Gradients, as they come", before),
                ("What the optimizer gets", after),
            )
        )
    return Why(tuple(lines), panels, legend) if lines or panels else None


def _series(row: Row, field: str) -> Series:
    by_epoch: dict[int, list[float]] = {}
    longest = max(run.epochs if run.status == "done" else len(run.history) for run in row.runs)
    for run in row.runs:
        for entry in carried_on(run, longest):
            norms = [
                norm
                for values in entry.get("receipt", {}).values()
                if math.isfinite(norm := values.get(field, math.nan)) and norm > 0
            ]
            if norms:
                by_epoch.setdefault(entry["epoch"], []).append(statistics.median(norms))
    return {epoch: statistics.fmean(found) for epoch, found in sorted(by_epoch.items())}


def _scales(table: Table, before: Mapping[str, Series], after: Mapping[str, Series]) -> list[str]:
    """The change of gradients' scale over a run, and what of it the optimizer sees."""
    lines = []
    for row in table.rows:
        asked = table.question is not None and row.method == table.question.method
        came, given = before[row.label], after[row.label]
        if not (asked or row.method == REFERENCE) or len(came) < 2:
            continue
        text = (
            f"{row.label}: from the first to the last epoch the gradients' norm, the median over "
            f"layers, came to {_times(came)} times what it was"
        )
        if row.method != REFERENCE:
            text += (
                f", and what the optimizer gets of them to {_times(given)} times"
                if given
                else ", and the optimizer gets nothing of them"
            )
        lines.append(f"{text}.")
    if len(lines) == 2 and table.spec.optimizer.startswith("adam"):
        lines.append(
            "Adam's steps follow the scale of gradients where it changes within the memory of its "
            "averages, some thousand steps: where gradients fade as the loss goes down, a plain "
            "optimizer's steps become smaller, and those on gradients of a constant norm do not."
        )
    return lines


def _times(series: Series) -> str:
    values = list(series.values())
    return f"{values[-1] / values[0]:.2g}"


def _controls(table: Table) -> list[str]:
    """ZNorm's parts beside it."""
    rows = {row.method: row for row in table.rows if row.comparison and row.comparison.interval}
    parts = [method for method in CONTROLS if method in rows]
    if "znorm" not in rows or not parts:
        return []
    headline = table.columns[0]
    lines = []
    for method in ("znorm", *parts):
        comparison = rows[method].comparison
        assert comparison is not None
        what = f", where {CONTROLS[method]}" if method in CONTROLS else ""
        lines.append(
            f"{label_of(method)}{what}: {difference(headline, comparison.interval)} against the "
            f"baseline, over {len(comparison.differences)} pairs."
        )
    return lines


def _clips(table: Table) -> list[str]:
    """The share of steps in which clips acted, of those that count it."""
    return [
        f"{row.label}: the clip acted in {row.clipped:.1%} of steps, the mean over tensors and runs"
        f"{', and the method is the baseline' if row.remark else ''}."
        for row in table.rows
        if row.clipped is not None
    ]
