"""The report: one self-contained HTML file beside the runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from znorm.lab.datasets import Dataset
from znorm.lab.floor import ABOUT
from znorm.lab.reporting.figures import curves, patches
from znorm.lab.reporting.tables import COLUMNS, gather
from znorm.lab.spec import DataSpec
from znorm.lab.store import Run, write_atomically
from znorm.lab.tasks import TASKS

__all__ = ["write_page"]


def write_page(
    root: Path,
    runs: Sequence[Run],
    datasets: Mapping[tuple[str, DataSpec], Dataset],
) -> Path:
    """Write ``report.html`` under ``root``; links to the runs are relative to it."""
    sections = []
    for table in gather(root, runs):
        dataset = datasets[table.spec.task, table.spec.data]
        sections.append(
            {
                "table": table,
                "task": TASKS[table.spec.task],
                "parts": {
                    "training": dataset.train,
                    "validation": dataset.validation,
                    "test": dataset.test,
                },
                "classes": dataset.classes,
                "notes": dataset.notes,
                "curves": curves(table),
                "patches": patches(dataset),
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
        columns=COLUMNS,
        floor_about=ABOUT,
        version=metadata.version("znorm"),
    )
    path = root / "report.html"
    write_atomically(path, page.encode())
    return path
