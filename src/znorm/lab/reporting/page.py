"""The report: one self-contained HTML file beside the runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from znorm.lab.datasets import Dataset
from znorm.lab.errors import DataError
from znorm.lab.floor import FLOORS
from znorm.lab.metrics import DEFINITIONS
from znorm.lab.reporting.figures import curves, patches
from znorm.lab.reporting.tables import Table, gather
from znorm.lab.store import Run, write_atomically
from znorm.lab.tasks import TASKS

__all__ = ["write_page"]


def write_page(
    root: Path,
    runs: Sequence[Run],
    datasets: Mapping[str, Dataset | DataError],
) -> Path:
    """Write ``report.html`` under ``root``; links to the runs are relative to it."""
    sections = []
    for table in gather(root, runs):
        dataset = datasets[table.spec.data_key]
        task = TASKS[table.spec.task]
        shown: dict[str, Any] = {"parts": {}, "classes": (), "patches": ()}
        if isinstance(dataset, DataError):
            shown["notes"] = (f"The images are not here: {dataset}",)
        else:
            shown = {
                "parts": {
                    "training": dataset.train,
                    "validation": dataset.validation,
                    "test": dataset.test,
                },
                "classes": dataset.classes,
                "notes": dataset.notes,
                "patches": patches(dataset),
            }
        sections.append(
            {
                **shown,
                "table": table,
                "task": task,
                "floor": FLOORS[task.output],
                "definitions": _definitions(table),
                "curves": curves(table),
            }
        )
    environment = Environment(
        loader=PackageLoader("znorm.lab.reporting", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html.j2").render(
        sections=sections,
        version=metadata.version("znorm"),
    )
    path = root / "report.html"
    write_atomically(path, page.encode())
    return path


def _definitions(table: Table) -> list[tuple[str, str]]:
    """What each column's score is."""
    return [
        (column.title, DEFINITIONS[name])
        for column in table.columns
        if (name := column.key.removeprefix("test_")) in DEFINITIONS
    ]
