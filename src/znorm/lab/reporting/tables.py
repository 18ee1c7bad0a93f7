"""Runs gathered into tables: one a configuration, a row a method."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table as RichTable

from znorm.lab.methods import METHODS
from znorm.lab.methods import label as label_of
from znorm.lab.metrics.score import Column
from znorm.lab.metrics.scores import columns_of as score_columns
from znorm.lab.reporting import trivial_baseline
from znorm.lab.reporting.trivial_baseline import TRIVIAL_BASELINES
from znorm.lab.runs.folder import Run
from znorm.lab.spec import RunSpec
from znorm.lab.stats import Interval, t_interval
from znorm.lab.tasks import TASKS
from znorm.lab.text import link, literal

__all__ = [
    "Cell",
    "Row",
    "Table",
    "Value",
    "columns_of",
    "gather",
    "images_of",
    "on_terminal",
    "plain",
]

REFERENCE = "baseline"


_COMMON = (
    Column("train_loss", "Train loss", 4, optional=False, place=60),
    Column("seconds", "Time, s", 1, optional=False, place=80),
)
_AT_BEST_VALIDATION = {
    "classes": Column(
        "best_validation_test_accuracy",
        "Test accuracy at best validation, %",
        2,
        100.0,
        False,
        place=70,
    ),
    "mask": Column(
        "best_validation_test_f1", "Test F1 at best validation", 4, optional=False, place=70
    ),
}
# Those that a terminal has room for.
TERMINAL = {
    "classes": ("test_accuracy", "train_loss", "seconds"),
    "mask": ("test_f1", "test_tversky", "test_hausdorff", "seconds"),
}


def columns_of(output: str) -> list[Column]:
    """The columns of a kind of task; the first is the headline, by which methods are compared."""
    columns = [*score_columns(output), *_COMMON, _AT_BEST_VALIDATION[output]]
    return sorted(columns, key=lambda column: column.place)


@dataclass(frozen=True)
class Value:
    """One number of one run, and the file that holds it, relative to the page."""

    seed: int
    text: str
    link: str


@dataclass(frozen=True)
class Cell:
    """A metric of a method over seeds."""

    interval: Interval | None
    mean: str
    half: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Row:
    """A method."""

    method: str
    label: str
    runs: tuple[Run, ...]
    cells: tuple[Cell, ...]
    difference: Cell | None
    epochs_to_baseline: Cell
    troubles: tuple[Value, ...]


@dataclass(frozen=True)
class Table:
    """All runs that differ in nothing but method and seed.

    Parameters
    ----------
    spec : RunSpec
        Of one of them.
    runs : tuple of Run
    columns : tuple of Column
        The headline first.
    rows : tuple of Row
        In the order of the registry of methods.
    trivial_baseline : dict or None
        Its result.json, if it is of the runs' images.
    trivial_baseline_link : str
        Its place, relative to the page.
    """

    spec: RunSpec
    runs: tuple[Run, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    trivial_baseline: Mapping[str, Any] | None
    trivial_baseline_link: str

    @property
    def seeds(self) -> int:
        return len({run.spec.seed for run in self.runs})

    @property
    def warnings(self) -> tuple[str, ...]:
        """Lines on the runs as a whole that a reader must know."""
        done = [run for run in self.runs if run.status == "done"]
        known = images_of(done)
        if len(known) < 2:
            return ()
        parts = []
        for one in sorted(known):
            seeds = sorted({run.spec.seed for run in done if images_of([run]) == {one}})
            parts.append(f"{one[:8]} at seed {', '.join(map(str, seeds))}")
        return (
            f"The runs were trained on {len(known)} different sets of images ({'; '.join(parts)}): "
            "no mean or interval is given over them; keep runs on other images in another folder.",
        )

    @property
    def beats_trivial_baseline(self) -> bool | None:
        """True where the baseline's mean is above it; None where one of them is missing."""
        score = (self.trivial_baseline or {}).get("metrics", {}).get(self.columns[0].key)
        for row in self.rows:
            if row.method == REFERENCE and row.cells[0].interval is not None and score is not None:
                return bool(row.cells[0].interval.mean > score)
        return None


def gather(root: Path, runs: Sequence[Run]) -> list[Table]:
    """One table for each configuration among ``runs``; links relative to ``root``."""
    groups: dict[str, list[Run]] = {}
    # A copy of a run is not another one.
    for run in {run.spec.canonical(): run for run in reversed(runs)}.values():
        groups.setdefault(run.spec.configuration, []).append(run)
    tables = []
    for members in groups.values():
        spec = members[0].spec
        trivial = trivial_baseline.kept(root, spec)
        images = None if trivial is None else trivial.get("fingerprint")
        if images is not None and not images_of(members) <= {images}:
            trivial = None
        address = link(root, trivial_baseline.folder(root, spec) / "result.json")
        columns = _columns(members)
        rows = _rows(root, members, columns)
        tables.append(Table(spec, tuple(members), columns, rows, trivial, address))
    return tables


def images_of(runs: Iterable[Run]) -> set[str]:
    """The fingerprints of the images that runs were trained on, of those that tell."""
    fingerprints = ((run.result or {}).get("hashes", {}).get("data") for run in runs)
    return {fingerprint for fingerprint in fingerprints if fingerprint}


def _columns(runs: Sequence[Run]) -> tuple[Column, ...]:
    """The columns of the runs' task, without optional ones that no finished run has."""
    done = [run.metrics for run in runs if run.status == "done"]
    return tuple(
        column
        for column in columns_of(TASKS[runs[0].spec.task].output)
        if not (column.optional and done) or any(column.key in metrics for metrics in done)
    )


def _rows(root: Path, runs: Sequence[Run], columns: Sequence[Column]) -> tuple[Row, ...]:
    reference = {
        run.spec.seed: run for run in runs if run.spec.method == REFERENCE and run.status == "done"
    }
    rows = []
    # The registry's order, then the user's own methods. A name alone does not make a method: the
    # same one may stand for another transform in runs of another day.
    order = {name: position for position, name in enumerate(METHODS)}
    members: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: order.get(run.spec.method, len(order))):
        members.setdefault(f"{run.spec.method} {run.spec.hash}", []).append(run)
    names = [group[0].spec.method for group in members.values()]
    for group in members.values():
        method = group[0].spec.method
        mine = sorted(group, key=lambda run: run.spec.seed)
        title = label_of(method)
        if names.count(method) > 1:
            title += f" ({group[0].spec.hash})"
        done = [run for run in mine if run.status == "done"]
        mixed = len(images_of(done)) > 1
        cells = tuple(_cell(root, column, done, mixed=mixed) for column in columns)
        paired = [
            run
            for run in done
            if run.spec.seed in reference and _alike(run, reference[run.spec.seed])
        ]
        ended = [
            run
            for run in mine
            if run.spec.seed in reference
            and run.status in ("done", "diverged", "failed")
            and _alike(run, reference[run.spec.seed])
        ]
        difference = None
        if method != REFERENCE and paired:
            column = columns[0]
            gains = [
                run.metrics[column.key] - reference[run.spec.seed].metrics[column.key]
                for run in paired
            ]
            difference = _summary(column, gains, (), sign=True, mixed=len(images_of(paired)) > 1)
        reached = _epochs_to_baseline(root, columns[0], ended, reference)
        troubles = tuple(
            Value(run.spec.seed, _trouble(run), _link(root, run)) for run in mine if run not in done
        ) + tuple(
            Value(run.spec.seed, "other images or weights than the baseline's", _link(root, run))
            for run in done
            if run.spec.seed in reference and not _alike(run, reference[run.spec.seed])
        )
        troubles += tuple(
            Value(run.spec.seed, lacking, _events(root, run))
            for run in done
            if (lacking := _lacks_epochs(run)) is not None
        )
        rows.append(Row(method, title, tuple(mine), cells, difference, reached, troubles))
    return tuple(rows)


def _epochs_to_baseline(
    root: Path, headline: Column, runs: Sequence[Run], reference: Mapping[int, Run]
) -> Cell:
    """The epoch in which each run first scored what the baseline of its seed scored at its end.

    The mean stands for runs that all got there; else how many did. One that diverged or failed did
    not. Where events.jsonl is not whole, nothing is said of any.
    """
    epochs: list[int | None] = []
    for run in runs:
        history = run.history
        if run.status == "done" and len(history) < run.spec.epochs:
            return Cell(None, "–", "", ())
        final = reference[run.spec.seed].metrics[headline.key]
        reached = (entry["epoch"] for entry in history if entry[headline.key] >= final)
        epochs.append(next(reached, None) if run.status == "done" else None)
    values = tuple(
        Value(run.spec.seed, "not reached" if epoch is None else str(epoch), _events(root, run))
        for run, epoch in zip(runs, epochs, strict=True)
    )
    reached_in = [epoch for epoch in epochs if epoch is not None]
    if not epochs or len(reached_in) < len(epochs):
        text = f"reached by {len(reached_in)} of {len(epochs)}" if epochs else "–"
        return Cell(None, text, "", values)
    return _summary(Column("epoch", "", 1), reached_in, values, mixed=len(images_of(runs)) > 1)


def _alike(run: Run, other: Run) -> bool:
    """Tell whether two runs had the same images, initial weights and batches, if that is known."""
    mine, theirs = ((one.result or {}).get("hashes", {}) for one in (run, other))
    shared = ("data", "initial_weights", "batches")
    return all(mine[key] == theirs[key] for key in shared if mine.get(key) and theirs.get(key))


def _cell(root: Path, column: Column, runs: Sequence[Run], *, mixed: bool) -> Cell:
    numbers: list[float] = []
    values: list[Value] = []
    for run in runs:
        result = run.result or {}
        number = result["seconds"] if column.key == "seconds" else run.metrics.get(column.key)
        if number is None:
            continue
        numbers.append(number)
        values.append(Value(run.spec.seed, column.show(number), _link(root, run)))
    return _summary(column, numbers, tuple(values), mixed=mixed)


def _summary(
    column: Column,
    numbers: Sequence[float],
    values: tuple[Value, ...],
    *,
    sign: bool = False,
    mixed: bool = False,
) -> Cell:
    """Mean and interval; of runs that are ``mixed``, on different images, there are none."""
    if not numbers:
        return Cell(None, "–", "", ())
    if mixed and len(numbers) > 1:
        return Cell(None, "no mean", "", values)
    interval = t_interval(numbers)
    mean = column.show(interval.mean)
    if sign and interval.mean >= 0:
        mean = f"+{mean}"
    half = "" if interval.half is None else column.show(interval.half)
    return Cell(interval, mean.replace("-", "−"), half, values)


def _lacks_epochs(run: Run) -> str | None:
    """A word on events of a finished run that are missing, if they are there at all."""
    there = (run.folder / "events.jsonl").exists()
    epochs = len(run.history)
    if not there or epochs >= run.spec.epochs:
        return None
    return f"events.jsonl is damaged: {epochs} of {run.spec.epochs} epochs can be read"


def _trouble(run: Run) -> str:
    result = run.result or {}
    if run.status == "diverged":
        return f"diverged at step {result['diverged_step']}"
    if run.status == "failed":
        return f"failed: {result['error']}"
    return run.status


def _link(root: Path, run: Run) -> str:
    name = "spec.json" if run.result is None else "result.json"
    return link(root, run.folder / name)


def _events(root: Path, run: Run) -> str:
    return link(root, run.folder / "events.jsonl")


def on_terminal(table: Table) -> RichTable:
    """The table for a terminal."""
    spec = table.spec
    title = f"{spec.task}, {spec.model}: mean ± 95 % t interval over {table.seeds} seed"
    title += "s" if table.seeds > 1 else ""
    rich = RichTable(title=literal(title, "table.title"), title_justify="left")
    if table.warnings:
        rich.caption, rich.caption_justify = literal(" ".join(table.warnings)), "left"
    rich.add_column("Method", no_wrap=True)
    keys = TERMINAL[TASKS[spec.task].output]
    shown = [i for i, column in enumerate(table.columns) if column.key in keys]
    for position in shown:
        rich.add_column(table.columns[position].title, justify="right")
    rich.add_column("vs baseline", justify="right")
    rich.add_column("Epochs to it", justify="right")
    for row in table.rows:
        cells = [plain(row.cells[position]) for position in shown]
        difference = "" if row.difference is None else plain(row.difference)
        trouble = "; ".join(f"seed {value.seed} {value.text}" for value in row.troubles)
        reached = plain(row.epochs_to_baseline)
        rich.add_row(literal(row.label), *cells, literal(trouble or difference), reached)
    score = (table.trivial_baseline or {}).get("metrics", {}).get(table.columns[0].key)
    if score is not None:
        label = TRIVIAL_BASELINES[TASKS[spec.task].output].label
        rich.add_section()
        rich.add_row(f"Floor: {label}", table.columns[0].show(score), *[""] * (len(shown) + 1))
    return rich


def plain(cell: Cell) -> str:
    """A cell as text: the mean, and half its interval."""
    return f"{cell.mean} ± {cell.half}" if cell.half else cell.mean
