"""The report: one self-contained HTML file beside the runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

import znorm
from znorm.lab.datasets import Dataset
from znorm.lab.errors import DataError
from znorm.lab.floor import FLOORS
from znorm.lab.metrics import DEFINITIONS
from znorm.lab.paper.grids import TARGETS
from znorm.lab.paper.record import Record
from znorm.lab.reporting.beside import paper_tables
from znorm.lab.reporting.data import data_card
from znorm.lab.reporting.figure2 import figure2
from znorm.lab.reporting.figures import curves, patches
from znorm.lab.reporting.gradients import gradients_by_depth
from znorm.lab.reporting.shown import link
from znorm.lab.reporting.tables import Table, gather, images_of
from znorm.lab.store import Damaged, Run, write_atomically
from znorm.lab.tasks import TASKS

__all__ = ["write_page"]


def write_page(
    root: Path,
    runs: Sequence[Run],
    datasets: Mapping[str, Dataset | DataError],
    record: Record | None = None,
    *,
    images: bool = True,
    damaged: Sequence[Damaged] = (),
) -> Path:
    """Write ``report.html`` under ``root``; links to the runs are relative to it.

    Parameters
    ----------
    root : Path
    runs : sequence of Run
    datasets : mapping
        By the runs' ``data_key``, or why they cannot be loaded.
    record : Record, optional
        What of the paper the runs reproduce.
    images : bool
        Whether pictures of the data are shown.
    damaged : sequence of Damaged
        Runs that cannot be read, which the page names.
    """
    tables = gather(root, runs)
    if record is not None:
        tables.sort(key=lambda table: _place(record, table))
    sections = []
    for table in tables:
        trained_on = images_of(table.runs)
        dataset = datasets[table.spec.data_key]
        exchanged = (
            isinstance(dataset, Dataset)
            and bool(trained_on)
            and dataset.fingerprint not in trained_on
        )
        if exchanged:
            dataset = DataError("others have been put in their place")
        task = TASKS[table.spec.task]
        shown: dict[str, Any] = {"patches": (), "figure2": None}
        if images and isinstance(dataset, Dataset):
            shown["patches"] = patches(dataset)
            shown["figure2"] = figure2(table, dataset, record.cases if record else ())
        sections.append(
            {
                **shown,
                "data": data_card(root, table.spec, dataset, trained_on),
                "exchanged": exchanged,
                "table": table,
                "task": task,
                "floor": FLOORS[task.output],
                "definitions": _definitions(table),
                "curves": curves(table),
                "gradients": gradients_by_depth(table),
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
        papers=[] if record is None else paper_tables(record, tables),
        record=record,
        images=images,
        damaged=[
            {
                "folder": _relative(root, other.folder),
                "link": link(root, other.folder),
                "reason": other.reason,
            }
            for other in damaged
        ],
        notes={section["table"].spec.configuration: section["data"].notes for section in sections},
        version=znorm.__version__,
    )
    path = root / "report.html"
    # Names of folders and texts of runs can hold what UTF-8 cannot.
    write_atomically(path, page.encode(errors="replace"))
    return path


def _place(record: Record, table: Table) -> int:
    """Where the paper has what a table's runs reproduce."""
    order = [
        (task, model, "receipt" in TARGETS[name].choices)
        for name, task in sorted(
            record.tasks.items(), key=lambda item: list(TARGETS).index(item[0])
        )
        for model in TARGETS[name].models
    ]
    mine = (table.spec.task, table.spec.model, bool(table.spec.receipt))
    return order.index(mine) if mine in order else len(order)


def _definitions(table: Table) -> list[tuple[str, str]]:
    """What each column's score is."""
    return [
        (column.title, DEFINITIONS[name])
        for column in table.columns
        if (name := column.key.removeprefix("test_")) in DEFINITIONS
    ]


def _relative(root: Path, folder: Path) -> str:
    return folder.relative_to(root).as_posix() if folder.is_relative_to(root) else str(folder)
