"""Figures as text that a page can hold: curves as SVG, patches as PNG."""

from __future__ import annotations

import base64
import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from PIL import Image

from znorm.lab.datasets import Dataset
from znorm.lab.evidence.endings import carried_on
from znorm.lab.evidence.pairs import REFERENCE
from znorm.lab.reporting.svg import BLUE, GREY, ORANGE, as_svg, style
from znorm.lab.reporting.tables import Row, Table, images_of
from znorm.lab.reporting.trivial_baseline import TRIVIAL_BASELINES
from znorm.lab.runs.folder import Run
from znorm.lab.tasks import TASKS

__all__ = ["Curves", "curves", "patches"]

# Okabe and Ito's colours, which colour-blind readers can tell apart, at a lightness that shows on
# white and on black.
COLOURS = (GREY, BLUE, ORANGE, "#009e73", "#c46fa3", "#d9480f", "#7a6ff0", "#a07b00")

_PANELS = {
    "classes": (("test_accuracy", "Test accuracy, %", 100.0), ("train_loss", "Train loss", 1.0)),
    "mask": (("test_f1", "Test F1", 1.0), ("train_loss", "Train loss", 1.0)),
}


@dataclass(frozen=True)
class Curves:
    """Panels as SVG, and what their colours stand for."""

    panels: tuple[str, ...]
    legend: tuple[tuple[str, str], ...]


def curves(table: Table) -> Curves:
    """The headline and the train loss by epoch: the mean over seeds, and their range."""
    panels = _PANELS[TASKS[table.spec.task].output]
    present = [row for row in table.rows if any(run.history for run in row.runs)]
    coloured = list(zip(present, cycle(COLOURS), strict=False))
    return Curves(
        tuple(_panel(table, key, title, scale, coloured) for key, title, scale in panels),
        tuple((row.label, colour) for row, colour in coloured),
    )


def _panel(
    table: Table, key: str, title: str, scale: float, coloured: Sequence[tuple[Row, str]]
) -> str:
    with style():
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

        figure = Figure(figsize=(4.7, 3.3), layout="constrained")
        axes = figure.subplots()
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.6)
        for row, colour in coloured:
            _draw(axes, row, key, scale, colour)
        if axes.dataLim.width == 0:
            axes.set_xticks([1])  # a single epoch
        score = (table.trivial_baseline or {}).get("metrics", {}).get(key)
        if score is not None:
            axes.axhline(scale * score, color=GREY, linewidth=1, linestyle=":")
            axes.annotate(
                f"floor: {TRIVIAL_BASELINES[TASKS[table.spec.task].output].label}",
                (1, scale * score),
                xycoords=("axes fraction", "data"),
                ha="right",
                va="bottom",
                fontsize=9,
            )
        return as_svg(figure)


def _draw(axes: Any, row: Row, key: str, scale: float, colour: str) -> None:
    """The mean of a method's runs; each by itself where they were trained on different images."""
    together = [row.runs] if len(images_of(row.runs)) < 2 else [(run,) for run in row.runs]
    for runs in together:
        _draw_mean(axes, row, runs, key, scale, colour)


def _draw_mean(
    axes: Any, row: Row, runs: Sequence[Run], key: str, scale: float, colour: str
) -> None:
    by_epoch: dict[int, list[float]] = {}
    longest = max(run.epochs if run.status == "done" else len(run.history) for run in runs)
    for run in runs:
        for entry in carried_on(run, longest):
            if key in entry:
                by_epoch.setdefault(entry["epoch"], []).append(scale * entry[key])
    if not by_epoch:
        return
    epochs = sorted(by_epoch)
    means = [statistics.fmean(by_epoch[epoch]) for epoch in epochs]
    mark = "." if len(epochs) <= 20 else ""
    style = "--" if row.method == REFERENCE else "-"
    axes.plot(epochs, means, style, color=colour, linewidth=1.8, marker=mark)
    low = [min(by_epoch[epoch]) for epoch in epochs]
    high = [max(by_epoch[epoch]) for epoch in epochs]
    axes.fill_between(epochs, low, high, color=colour, alpha=0.08, linewidth=0)


def patches(dataset: Dataset, each: int = 8) -> list[tuple[str, list[str]]]:
    """Test images of each class as data URIs, the true masks' outlines drawn in.

    The first of each class; of masks, some spread over the split, since neighbours are alike.
    """
    from scipy.ndimage import binary_erosion

    shown = []
    for number, name in enumerate(dataset.classes):
        members = (dataset.test.labels == number).nonzero().flatten()
        step = max(1, len(members) // each) if dataset.test.has_masks else 1
        few = dataset.test.take(members[::step][:each])
        images = few.images.expand(-1, 3, -1, -1) if few.images.shape[1] == 1 else few.images
        # A copy: outlines are drawn into it.
        pictures = images[:, :3].permute(0, 2, 3, 1).numpy().copy()
        if few.has_masks:
            for picture, mask in zip(pictures, few.targets.numpy().astype(bool), strict=True):
                picture[mask & ~binary_erosion(mask)] = (255, 60, 60)
        shown.append((name, [_png(picture) for picture in pictures]))
    return shown


def _png(pixels: Any) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
