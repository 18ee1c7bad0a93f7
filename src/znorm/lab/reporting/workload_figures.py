"""Figures of methods over workloads: mean ranks on a line, and performance profiles."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from znorm.lab.reporting.strokes import Stroke, legend_of
from znorm.lab.reporting.svg import GREY, as_svg, mark, style

__all__ = ["profiles", "ranks_on_a_line"]


def ranks_on_a_line(
    ranks: Mapping[str, float], distance: float, groups: Sequence[Sequence[str]]
) -> str:
    """A critical-difference diagram.

    Parameters
    ----------
    ranks : mapping
        Of each method, by its label.
    distance : float
        From which on ranks differ, drawn above the line.
    groups : sequence of sequences of str
        Methods that are not told apart; a bar for each.

    References
    ----------
    Demšar, "Statistical comparisons of classifiers over multiple data sets", 2006.
    """
    order = sorted(ranks, key=lambda label: ranks[label])
    half = math.ceil(len(order) / 2)
    first_line = 0.35 + 0.22 * len(groups)
    height = first_line + 0.3 * half
    with style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(4.7, 0.8 + 0.55 * (height + 0.6)), layout="constrained")
        axes: Any = figure.subplots()
        axes.set_axis_off()
        count = len(order)
        axes.set_xlim(1 - 0.75 * count, count + 0.75 * count)
        axes.set_ylim(-height - 0.1, 0.75)
        axes.plot([1, count], [0, 0], color="#010203", linewidth=1.2)
        for rank in range(1, count + 1):
            axes.plot([rank, rank], [0, 0.08], color="#010203", linewidth=1)
            axes.annotate(str(rank), (rank, 0.12), ha="center", va="bottom", fontsize=9)
        shown = min(distance, count - 1)
        axes.plot([1, 1 + shown], [0.52, 0.52], color=GREY, linewidth=2, solid_capstyle="butt")
        axes.annotate(
            f"they differ from {distance:.2f} on",
            (1, 0.55),
            ha="left",
            va="bottom",
            fontsize=8.5,
            annotation_clip=False,
        )
        for number, group in enumerate(groups):
            ends = [ranks[label] for label in group]
            y = -0.2 - 0.22 * number
            axes.plot(
                [min(ends) - 0.03 * count, max(ends) + 0.03 * count],
                [y, y],
                color="#010203",
                linewidth=4,
                solid_capstyle="butt",
            )
        for place, label in enumerate(order):
            left = place < half
            line = place if left else count - 1 - place
            y = -first_line - 0.3 * line
            end = 1 - 0.05 * count if left else count + 0.05 * count
            axes.plot([ranks[label], ranks[label], end], [0, y, y], color=GREY, linewidth=0.9)
            axes.annotate(
                f"{label}, {ranks[label]:.2f}",
                (end, y),
                xytext=(-3 if left else 3, 0),
                textcoords="offset points",
                ha="right" if left else "left",
                va="center",
                fontsize=9,
                annotation_clip=False,
            )
        words = "; ".join(f"{label} {ranks[label]:.2f}" for label in order)
        together = "; ".join(" and ".join(group) for group in groups)
        return as_svg(
            figure,
            label="Mean ranks of methods, the best first",
            description=f"{words}. Not told apart: {together or 'none'}.",
        )


def profiles(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    strokes: Mapping[str, Stroke] | None = None,
) -> str:
    """Performance profiles: the share of workloads within each factor of the fastest.

    Parameters
    ----------
    curves : mapping
        Of each method, by its label, the factors at which the share changes, and the share there.
    strokes : mapping, optional
        The looks of a page's methods by their labels.
    """
    with style():
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter

        figure = Figure(figsize=(4.7, 3.9), layout="constrained")
        axes: Any = figure.subplots()
        axes.set_title("Share of workloads within it, %", loc="left", fontsize=10.5)
        axes.set_xlabel("times the fastest method's epochs")
        axes.set_xscale("log")
        most = max([2.0, *(factor for curve in curves.values() for factor, _ in curve)])
        for label, stroke in legend_of(curves, strokes):
            curve = curves[label]
            factors = [*(factor for factor, _ in curve), most * 1.1]
            shares = [*(100 * share for _, share in curve), 100 * curve[-1][1]]
            settings = stroke.settings(len(factors))
            drawn = axes.step(factors, shares, where="post", label=label, **settings)
            mark(drawn, stroke.key)
        axes.set_xlim(1, most * 1.1)
        axes.set_ylim(-3, 103)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.6)
        figure.legend(frameon=False, fontsize=8.5, loc="outside lower center", ncols=2)
        words = "; ".join(
            f"{label}: {100 * curve[0][1]:.0f} % at once, {100 * curve[-1][1]:.0f} % within "
            f"{curve[-1][0]:.3g} times"
            for label, curve in curves.items()
        )
        return as_svg(
            figure,
            label="Share of workloads by how many times the fastest method's epochs",
            description=f"{words}.",
        )
