"""Figures as text that a page can hold: curves as SVG, patches as PNG."""

from __future__ import annotations

import base64
import io
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from znorm.lab.datasets import Dataset
from znorm.lab.methods import METHODS
from znorm.lab.reporting.tables import REFERENCE, Table

__all__ = ["Curves", "curves", "patches"]

# Okabe and Ito's colours, which colour-blind readers can tell apart, at a lightness that shows on
# white and on black.
COLOURS = ("#808080", "#0f83c9", "#e08a00", "#009e73", "#c46fa3", "#d9480f")

# What matplotlib draws text and axes in; the page replaces it by its own text colour.
_INK = "#010203"


@dataclass(frozen=True)
class Curves:
    """Panels as SVG, and what their colours stand for."""

    panels: tuple[str, ...]
    legend: tuple[tuple[str, str], ...]


def curves(table: Table) -> Curves:
    """Test accuracy and train loss by epoch: the mean over seeds, and their range."""
    panels = (("test_accuracy", "Test accuracy, %", 100.0), ("train_loss", "Train loss", 1.0))
    present = {run.spec.method for run in table.runs if run.history}
    coloured = [pair for pair in zip(METHODS, COLOURS, strict=True) if pair[0] in present]
    return Curves(
        tuple(_panel(table, key, title, scale, coloured) for key, title, scale in panels),
        tuple((METHODS[method].label, colour) for method, colour in coloured),
    )


def _panel(
    table: Table, key: str, title: str, scale: float, coloured: Sequence[tuple[str, str]]
) -> str:
    # Imported here: matplotlib takes half a second, and only the page needs it.
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "znorm",
        "font.family": "sans-serif",
        "font.size": 10.5,
        "text.color": _INK,
        "axes.edgecolor": _INK,
        "axes.labelcolor": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with mpl.rc_context(settings):
        figure = Figure(figsize=(4.7, 3.3), layout="constrained")
        axes = figure.subplots()
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y", color="#808080", alpha=0.25, linewidth=0.6)
        for method, colour in coloured:
            _draw(axes, table, method, key, scale, colour)
        score = (table.floor or {}).get("metrics", {}).get(key)
        if score is not None:
            axes.axhline(scale * score, color="#808080", linewidth=1, linestyle=":")
            axes.annotate(
                "floor: colour statistics",
                (1, scale * score),
                xycoords=("axes fraction", "data"),
                ha="right",
                va="bottom",
                fontsize=9,
            )
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    # Without a size of its own the picture takes that of its place in the page.
    head, bracket, rest = svg.partition(">")
    return re.sub(r' (?:width|height)="[^"]*"', "", head) + bracket + rest


def _draw(axes: Any, table: Table, method: str, key: str, scale: float, colour: str) -> None:
    by_epoch: dict[int, list[float]] = {}
    for run in table.runs:
        if run.spec.method == method:
            for entry in run.history:
                if key in entry:
                    by_epoch.setdefault(entry["epoch"], []).append(scale * entry[key])
    if not by_epoch:
        return
    epochs = sorted(by_epoch)
    means = [statistics.fmean(by_epoch[epoch]) for epoch in epochs]
    mark = "." if len(epochs) <= 20 else ""
    style = "--" if method == REFERENCE else "-"
    axes.plot(epochs, means, style, color=colour, linewidth=1.8, marker=mark)
    low = [min(by_epoch[epoch]) for epoch in epochs]
    high = [max(by_epoch[epoch]) for epoch in epochs]
    axes.fill_between(epochs, low, high, color=colour, alpha=0.08, linewidth=0)


def patches(dataset: Dataset, each: int = 8) -> list[tuple[str, list[str]]]:
    """The first test images of each class, as data URIs."""
    shown = []
    for label, name in enumerate(dataset.classes):
        chosen = (dataset.test.labels == label).nonzero().flatten()[:each]
        images = dataset.test.images[chosen].permute(0, 2, 3, 1).numpy()
        shown.append((name, [_png(image) for image in images]))
    return shown


def _png(pixels: Any) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
