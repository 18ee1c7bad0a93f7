"""Paired differences as a figure: each method's runs less the baseline's of their seed."""

from __future__ import annotations

from collections.abc import Mapping

from znorm.lab.reporting.strokes import Stroke
from znorm.lab.reporting.svg import GREY, as_svg, mark, style
from znorm.lab.reporting.tables import Table

__all__ = ["paired_differences"]


def paired_differences(table: Table, strokes: Mapping[str, Stroke]) -> str | None:
    """A line a method: a mark for each pair, and the mean with its 95 % interval.

    The gain that the question asks for is a dotted line. None where no method has two pairs.
    """
    rows = [
        (row.label, row.comparison)
        for row in table.rows
        if row.comparison is not None and len(row.comparison.differences) > 1
    ]
    if not rows:
        return None
    column, scale = table.columns[0], table.columns[0].scale
    words = []
    with style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7.4, 0.9 + 0.34 * len(rows)), layout="constrained")
        axes = figure.subplots()
        axes.axvline(0, color="#010203", linewidth=1)
        if table.question is not None:
            worth = scale * table.question.worth
            axes.axvline(worth, color=GREY, linewidth=1, linestyle=":")
            axes.annotate(
                "worth it",
                (worth, 1),
                xycoords=("data", "axes fraction"),
                xytext=(3, 2),
                textcoords="offset points",
                fontsize=8.5,
            )
        for place, (label, comparison) in enumerate(rows):
            stroke, y = strokes[label], -place
            values = [scale * value for value in comparison.differences]
            dots = axes.plot(
                values, [y] * len(values), stroke.mark, color=stroke.colour, markersize=4, alpha=0.6
            )
            mark(dots, stroke.key)
            interval = comparison.interval
            if interval is None or interval.half is None:
                continue
            low, mean, high = (scale * one for one in (interval.low, interval.mean, interval.high))
            bar = axes.plot([low, high], [y - 0.22] * 2, color=stroke.colour, linewidth=2.4)
            middle = axes.plot([mean], [y - 0.22], "|", color=stroke.colour, markersize=9)
            mark([*bar, *middle], stroke.key)
            words.append(f"{label} {mean:+.{column.digits}f} ({low:+.2f} to {high:+.2f})")
        axes.set_yticks([-place for place in range(len(rows))], [label for label, _ in rows])
        axes.set_ylim(-len(rows) + 0.35, 0.5)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        unit = "points" if scale == 100 else column.title.removeprefix("Test ")
        axes.set_xlabel(f"{column.title.partition(',')[0]}, difference from the baseline, {unit}")
        return as_svg(
            figure,
            label=f"Differences from the baseline in {column.title.partition(',')[0].lower()}",
            description=f"Mean and 95 % interval: {'; '.join(words)}.",
        )
