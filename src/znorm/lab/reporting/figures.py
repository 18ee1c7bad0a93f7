"""Figures as text that a page can hold: curves as SVG, patches as PNG."""

from __future__ import annotations

import base64
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from znorm.lab.datasets import Dataset
from znorm.lab.evidence.endings import carried_on
from znorm.lab.reporting.panels import Line, Panel, line_panel
from znorm.lab.reporting.strokes import Legend, Stroke, legend_of
from znorm.lab.reporting.tables import Row, Table, images_of
from znorm.lab.reporting.trivial_baseline import TRIVIAL_BASELINES
from znorm.lab.runs.folder import Run
from znorm.lab.tasks import TASKS

__all__ = ["Curves", "curves", "patches"]

_PANELS = {
    "classes": (("test_accuracy", "Test accuracy, %", 100.0), ("train_loss", "Train loss", 1.0)),
    "mask": (("test_f1", "Test F1", 1.0), ("train_loss", "Train loss", 1.0)),
}


@dataclass(frozen=True)
class Curves:
    """Panels, and what the looks of their lines stand for."""

    panels: tuple[Panel, ...]
    legend: Legend


def curves(table: Table, strokes: Mapping[str, Stroke] | None = None) -> Curves:
    """The headline and the train loss by epoch: the mean over seeds, and their range.

    ``strokes`` are the looks of a page's methods by their labels; by default the table's own.
    """
    panels = _PANELS[TASKS[table.spec.task].output]
    present = [row for row in table.rows if any(run.history for run in row.runs)]
    looks = legend_of((row.label for row in table.rows), strokes)
    stroked = [
        (row, stroke) for row, (_, stroke) in zip(table.rows, looks, strict=True) if row in present
    ]
    return Curves(
        tuple(_panel(table, key, title, scale, stroked) for key, title, scale in panels),
        tuple((row.label, stroke) for row, stroke in stroked),
    )


def _panel(
    table: Table, key: str, title: str, scale: float, stroked: Sequence[tuple[Row, Stroke]]
) -> Panel:
    lines = [line for row, stroke in stroked for line in _lines(row, key, scale, stroke)]
    score = (table.trivial_baseline or {}).get("metrics", {}).get(key)
    level = None
    if score is not None:
        label = TRIVIAL_BASELINES[TASKS[table.spec.task].output].label
        level = f"floor: {label}", scale * score
    return line_panel(title, "epoch", lines, level=level)


def _lines(row: Row, key: str, scale: float, stroke: Stroke) -> list[Line]:
    """The mean of a method's runs; each by itself where they were trained on different images."""
    together = [(row.label, row.runs)]
    if len(images_of(row.runs)) > 1:
        together = [(f"{row.label}, seed {run.spec.seed}", (run,)) for run in row.runs]
    made = [_line(label, runs, key, scale, stroke) for label, runs in together]
    return [line for line in made if line is not None]


def _line(label: str, runs: Sequence[Run], key: str, scale: float, stroke: Stroke) -> Line | None:
    by_epoch: dict[int, list[float]] = {}
    longest = max(run.epochs if run.status == "done" else len(run.history) for run in runs)
    for run in runs:
        for entry in carried_on(run, longest):
            if key in entry:
                by_epoch.setdefault(entry["epoch"], []).append(scale * entry[key])
    if not by_epoch:
        return None
    found = sorted(by_epoch.items())
    return Line(
        label,
        stroke,
        {epoch: statistics.fmean(values) for epoch, values in found},
        {epoch: min(values) for epoch, values in found},
        {epoch: max(values) for epoch, values in found},
    )


def patches(dataset: Dataset, each: int = 8) -> list[tuple[str, list[str]]]:
    """Test images of each class as data URIs, the true masks' outlines drawn in.

    The first of each class; of masks, some spread over the split, since neighbours are alike.
    """
    from scipy.ndimage import binary_erosion

    shown = []
    for number, name in enumerate(dataset.classes):
        members = dataset.test.of_class(number, len(dataset.classes)).nonzero().flatten()
        step = max(1, len(members) // each) if dataset.test.has_masks else 1
        few = dataset.test.take(members[::step][:each])
        images = few.images.expand(-1, 3, -1, -1) if few.images.shape[1] == 1 else few.images
        # A copy: outlines are drawn into it.
        pictures = images[:, :3].permute(0, 2, 3, 1).numpy().copy()
        if few.has_masks:
            marks = few.targets == number if number else few.targets > 0
            for picture, mask in zip(pictures, marks.numpy(), strict=True):
                picture[mask & ~binary_erosion(mask)] = (255, 60, 60)
        shown.append((name, [_png(picture) for picture in pictures]))
    return shown


def _png(pixels: Any) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
