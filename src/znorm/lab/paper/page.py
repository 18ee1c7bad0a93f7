"""The paper's part of a page: its tables above those of the runs, in its order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from znorm.lab.paper.claims import claims
from znorm.lab.paper.grids import TARGETS, deviations
from znorm.lab.paper.record import Record
from znorm.lab.paper.tables import paper_tables
from znorm.lab.reporting.page import Frame, Notes, Section, templates
from znorm.lab.reporting.tables import Table

__all__ = ["frame_of", "frame_of_folder"]


def frame_of_folder(root: Path) -> Frame | None:
    """The frame of a folder that reproduces the paper, None for any other.

    Raises
    ------
    DataError
        If the folder's record cannot be read.
    """
    record = Record.read(root)
    return None if record is None else frame_of(record)


def frame_of(record: Record) -> Frame:
    """The page of runs that reproduce what a record says."""
    size = record.size
    statement = f"Scale {record.scale}: {size.about}."
    if not size.result:
        about = size.about.replace("; not a result", "")
        statement = (
            f"Not a result. Scale {record.scale}: {about}. No number of this page says anything "
            "about a method."
        )
    template: Any = templates("znorm.lab.paper").get_template("tables.html.j2").module

    def sections(tables: Sequence[Table], notes: Notes) -> list[Section]:
        made = []
        for table in paper_tables(record, tables):
            anchor = table.label.lower().replace(" ", "")
            title = f"{table.label} beside the published numbers"
            html = template.section(table, anchor, title, size.result, notes)
            made.append(Section(anchor, title, html))
        own = {TARGETS[name].task for name in record.tasks}
        mine = [table for table in tables if table.spec.task in own and table.tuning is None]
        away = {one.spec.configuration for one in mine if deviations(one.spec, one.spec.task)}
        found = claims(mine, away)
        title = "What the paper claims, and what runs here show"
        made.append(Section("claims", title, template.claims(found, size.result)))
        return made

    return Frame(
        title="The paper's tables and figure, trained here",
        statement=statement,
        is_result=size.result,
        place=_order_of(record),
        sections=sections,
        style=Markup(template.style()),
        cases=record.cases,
    )


def _order_of(record: Record) -> Callable[[Table], int]:
    """The place of a table where the paper has it, for those that the paper has."""
    targets = sorted(record.tasks.items(), key=lambda item: list(TARGETS).index(item[0]))
    order = [
        (task, model, "receipt" in TARGETS[name].choices)
        for name, task in targets
        for model in TARGETS[name].models
    ]

    def place(table: Table) -> int:
        key = (table.spec.task, table.spec.model, bool(table.spec.receipt))
        return order.index(key) if key in order else len(order)

    return place
