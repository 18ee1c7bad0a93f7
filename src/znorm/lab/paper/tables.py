"""The paper's tables: its published numbers beside those of the runs that were trained here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.table import Table as RichTable

from znorm.lab.methods import PUBLISHED, label
from znorm.lab.metrics.score import Column
from znorm.lab.paper.grids import TARGETS, deviations
from znorm.lab.paper.published import published
from znorm.lab.paper.record import Record
from znorm.lab.reporting.tables import Cell, Row, Table, Value, columns_of, plain
from znorm.lab.stats import prediction_interval
from znorm.lab.tasks import TASKS
from znorm.lab.text import literal

__all__ = [
    "MethodLine",
    "ModelBlock",
    "PaperTable",
    "PublishedCell",
    "paper_on_terminal",
    "paper_tables",
    "remarks",
]

# Ours beside theirs. The paper's Hausdorff distances fit the row variant, not a distance in pixels,
# which it does not say: both of ours stand beside the one of theirs.
_METRICS = {
    "test_accuracy": "test_accuracy",
    "train_loss": "train_loss",
    "test_f1": "test_f1",
    "test_tversky": "test_tversky",
    "test_hausdorff": "test_hausdorff",
    "test_hausdorff_rows": "test_hausdorff",
}

# As many as the paper prints.
_DIGITS = {
    "test_accuracy": 1,
    "train_loss": 4,
    "test_f1": 3,
    "test_tversky": 3,
    "test_hausdorff": 3,
}


@dataclass(frozen=True)
class PublishedCell:
    """One cell of the paper.

    Parameters
    ----------
    key : str
        Task, model, method and metric, as published.csv names them.
    published : str or None
        None where the paper has no such cell.
    here : Cell or None
        None where nothing was trained for it.
    difference : str
        Ours less the published one; empty where one of them is missing, and where ours is of
        another task that stood in.
    verdict : str
        Of the published number against where one run more of ours would lie, its 95 % prediction
        interval: "consistent", "outside" or "too few seeds", of fewer than three; empty where there
        is no difference, and for runs whose settings differ from the paper's.
    """

    key: str
    published: str | None
    here: Cell | None
    difference: str
    verdict: str = ""


@dataclass(frozen=True)
class MethodLine:
    """A method of a model."""

    label: str
    cells: tuple[PublishedCell, ...]
    troubles: tuple[Value, ...]


@dataclass(frozen=True)
class ModelBlock:
    """A model of a table, in one configuration that was trained here, or in none.

    Parameters
    ----------
    model : str
    table : Table or None
        The runs.
    deviations : tuple of str
        Their differences from the paper's settings.
    lines : tuple of MethodLine
    """

    model: str
    table: Table | None
    deviations: tuple[str, ...]
    lines: tuple[MethodLine, ...]


@dataclass(frozen=True)
class PaperTable:
    """One of the three.

    Parameters
    ----------
    label, task : str
        Its title, and the name of its own task.
    columns : tuple of Column
    blocks : tuple of ModelBlock
    """

    label: str
    task: str
    columns: tuple[Column, ...]
    blocks: tuple[ModelBlock, ...]

    @property
    def stands_in(self) -> bool:
        """True where another task was trained in place of the paper's."""
        return any(block.table and block.table.spec.task != self.task for block in self.blocks)


def paper_tables(record: Record, tables: Sequence[Table]) -> list[PaperTable]:
    """Each table that was asked for, whole: every published number, trained here or not."""
    whole = []
    for name, target in TARGETS.items():
        if target.table is None or name not in record.tasks:
            continue
        metrics = {metric for task, _, _, metric in published() if task == target.task}
        columns = tuple(
            column
            for column in columns_of(TASKS[target.task].output)
            if _METRICS.get(column.key) in metrics
        )
        blocks = []
        for model in target.models:
            mine: list[Table | None] = [
                table
                for table in tables
                if table.spec.task == record.tasks[name]
                and table.spec.model == model
                and not table.spec.receipt
                and table.tuning is None
            ]
            for table in mine or [None]:
                away = () if table is None else tuple(deviations(table.spec, target.task))
                lines = _lines(target.task, model, table, columns, away)
                blocks.append(ModelBlock(model, table, away, lines))
        whole.append(PaperTable(target.label, target.task, columns, tuple(blocks)))
    return whole


def _lines(
    task: str,
    model: str,
    table: Table | None,
    columns: Sequence[Column],
    away: Sequence[str],
) -> tuple[MethodLine, ...]:
    rows: dict[str, Row] = {} if table is None else {row.method: row for row in table.rows}
    lines = []
    for method in dict.fromkeys((*PUBLISHED, *rows)):
        row = rows.get(method)
        title = label(method) if row is None else row.label
        cells = tuple(_cell(task, model, method, column, table, row) for column in columns)
        if away:
            # Runs of other settings say nothing of where a published one should lie.
            cells = tuple(replace(cell, verdict="") for cell in cells)
        lines.append(MethodLine(title, cells, () if row is None else row.troubles))
    return tuple(lines)


def _cell(
    task: str, model: str, method: str, column: Column, table: Table | None, row: Row | None
) -> PublishedCell:
    metric = _METRICS[column.key]
    number = published().get((task, model, method, metric))
    here = None
    if table is not None and row is not None:
        here = row.cells[table.columns.index(column)]
    difference = verdict = ""
    comparable = table is not None and table.spec.task == task
    if comparable and number is not None and here is not None and here.interval is not None:
        text = column.show(here.interval.mean - number)
        difference = text.replace("-", "−") if text.startswith("-") else f"+{text}"
        scores = (
            [run.metrics[column.key] for run in row.runs if column.key in run.metrics]
            if row
            else []
        )
        verdict = _held_against(number, scores)
    shown = None if number is None else f"{number * column.scale:.{_DIGITS[metric]}f}"
    return PublishedCell(f"{task} {model} {method} {metric}", shown, here, difference, verdict)


def _held_against(number: float, scores: Sequence[float]) -> str:
    """A published number, of one run, against where one run more of ours would lie."""
    if len(scores) < 3:
        return "too few seeds"
    expected = prediction_interval(scores)
    return "consistent" if expected.low <= number <= expected.high else "outside"


def paper_on_terminal(table: PaperTable) -> RichTable:
    """The table for a terminal: published, here, and the difference."""
    rich = RichTable(title=f"{table.label} ({table.task})", title_justify="left")
    warnings = [text for block in table.blocks if block.table for text in block.table.warnings]
    if warnings:
        rich.caption, rich.caption_justify = literal("\n".join(warnings)), "left"
    rich.add_column("Model", no_wrap=True)
    rich.add_column("Method", no_wrap=True)
    # What a terminal has room for: the headline.
    rich.add_column(f"{table.columns[0].title}: published", justify="right")
    rich.add_column("here", justify="right")
    rich.add_column("difference", justify="right")
    for block in table.blocks:
        rich.add_section()
        if block.table is None:
            rich.add_row(block.model, "not trained here")
            continue
        for place, line in enumerate(block.lines):
            cell = line.cells[0]
            here = [] if cell.here is None else [plain(cell.here)]
            here += [f"seed {value.seed} {value.text}" for value in line.troubles]
            rich.add_row(
                block.model if not place else "",
                literal(line.label),
                cell.published or "–",
                literal("; ".join(here)),
                f"{cell.difference} {cell.verdict}".strip(),
            )
    return rich


def remarks(table: PaperTable) -> list[str]:
    """A line for each model whose runs differ from the paper's: the differences."""
    return [
        f"{table.label}, {block.model}: {'; '.join(block.deviations)}"
        for block in table.blocks
        if block.deviations
    ]
