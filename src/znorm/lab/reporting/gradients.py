"""Gradient norms by depth and over training, from the receipts that runs kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from znorm.lab.reporting.panels import Panel, plot_area, shown
from znorm.lab.reporting.strokes import Stroke, legend_of
from znorm.lab.reporting.svg import AMBER, BLUE, GREY, as_svg, style
from znorm.lab.reporting.tables import Row, Table
from znorm.lab.text import readable

__all__ = ["Gradients", "gradients_by_depth"]

Receipt = Mapping[str, Mapping[str, float]]

# No norm of float32's numbers is as large, or as small and not zero; an axis has limits of its own.
_LARGEST = 1e100


@dataclass(frozen=True)
class Gradients:
    """Panels, the seed that they are of, and the key of each panel's method."""

    panels: tuple[Panel, ...]
    seed: int
    keys: tuple[str, ...]


def gradients_by_depth(
    table: Table, strokes: Mapping[str, Stroke] | None = None
) -> Gradients | None:
    """For each method the norms of its layers' gradients, a line an epoch.

    Of the seed whose receipts most methods kept, the first of them if there are several; where a
    method has a transform, a second panel shows what the optimizer gets. All panels share the axis
    and the layers, those which every method's receipt holds. None where no run kept receipts.
    ``strokes`` are the looks of a page's methods by their labels; by default the table's own.
    """
    by_seed: dict[int, list[tuple[Row, list[tuple[int, Receipt]]]]] = {}
    for row in table.rows:
        for run in row.runs:
            epochs = [(e["epoch"], found) for e in run.history if (found := _norms_of(e))]
            if epochs:
                by_seed.setdefault(run.spec.seed, []).append((row, epochs))
    if not by_seed:
        return None
    seed = min(by_seed, key=lambda one: (-len(by_seed[one]), one))
    kept = by_seed[seed]
    layers = [
        name
        for name in kept[0][1][0][1]
        if all(name in receipt for _, epochs in kept for _, receipt in epochs)
    ]
    if not layers:
        return None
    looks = dict(legend_of((row.label for row in table.rows), strokes))
    panels: list[tuple[str, list[tuple[int, list[float]]]]] = []
    keys: list[str] = []
    for row, epochs in kept:
        panels.append((f"{row.label}: gradient", _norms(epochs, layers, "norm_before")))
        keys.append(looks[row.label].key)
        if row.runs[0].spec.transform:
            after = _norms(epochs, layers, "norm_after")
            panels.append((f"{row.label}: what the optimizer gets", after))
            keys.append(looks[row.label].key)
    sizes = [size for _, lines in panels for _, line in lines for size in line if size > 0]
    limits = (min(sizes) / 2, max(sizes) * 2) if sizes else None
    drawn = tuple(_panel(title, lines, limits, layers) for title, lines in panels)
    return Gradients(drawn, seed, tuple(keys))


def _norms_of(entry: Mapping[str, Any]) -> Receipt:
    """The layers of an epoch's receipt that have both norms: the file may be damaged."""
    receipt: Receipt = entry.get("receipt", {})
    fields = ("norm_before", "norm_after")
    return {
        name: one
        for name, one in receipt.items()
        if all(0 <= one.get(field, -1) < _LARGEST for field in fields)
    }


def _norms(
    epochs: Sequence[tuple[int, Receipt]], layers: Sequence[str], field: str
) -> list[tuple[int, list[float]]]:
    # A logarithmic axis has no place for zeros.
    return [
        (epoch, [size if (size := r[name][field]) > 1 / _LARGEST else math.nan for name in layers])
        for epoch, r in epochs
    ]


def _panel(
    title: str,
    lines: Sequence[tuple[int, Sequence[float]]],
    limits: tuple[float, float] | None,
    layers: Sequence[str],
) -> Panel:
    with style():
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import LinearSegmentedColormap, Normalize
        from matplotlib.figure import Figure

        colours = LinearSegmentedColormap.from_list("epochs", [BLUE, GREY, AMBER])
        first, last = lines[0][0], lines[-1][0]
        scale = Normalize(first, max(last, first + 1))
        figure = Figure(figsize=(4.7, 3.3), layout="constrained")
        axes: Any = figure.subplots()
        axes.set_title(title, loc="left", fontsize=10.5)
        axes.set_xlabel("layer, from the input on")
        axes.set_ylabel("norm")
        for epoch, sizes in lines:
            # Later ones are thicker: told apart without colour, too.
            width = 0.8 + 1.2 * scale(epoch)
            axes.plot(range(1, len(sizes) + 1), sizes, color=colours(scale(epoch)), linewidth=width)
        axes.set_yscale("log")
        if limits is not None:
            axes.set_ylim(*limits)
        axes.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.6)
        if len(lines) > 1:
            bar = figure.colorbar(ScalarMappable(scale, colours), ax=axes, label="epoch")
            bar.outline.set_visible(False)
        # The first epoch, the one in the middle and the last.
        few = [lines[place] for place in sorted({0, len(lines) // 2, len(lines) - 1})]
        texts = [(f"epoch {epoch}", _texts(sizes)) for epoch, sizes in few]
        words = "; ".join(
            f"{name}: {values[0] or 'nothing'} at the input to {values[-1] or 'nothing'} at the end"
            for name, values in texts
        )
        svg = as_svg(figure, label=f"{title}, norm by layer", description=f"{words}.")
        readout = {
            **plot_area(figure, axes, range(1, len(layers) + 1)),
            "what": "layer",
            "at": [readable(name) for name in layers],
            "lines": [{"key": None, "label": name, "values": values} for name, values in texts],
        }
        return Panel(svg, readout)


def _texts(sizes: Sequence[float]) -> list[str | None]:
    return [None if math.isnan(size) else shown(size) for size in sizes]
