"""Runs gathered into tables: one a configuration, a row a method."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table as RichTable

from znorm.lab.evidence.acceleration import Acceleration, acceleration
from znorm.lab.evidence.comparison import Comparison, compare_pairs, hold_together
from znorm.lab.evidence.endings import ENDINGS, last_epoch
from znorm.lab.evidence.pairs import REFERENCE, pairs_of
from znorm.lab.evidence.question import WORTH, Question
from znorm.lab.evidence.tuning import Tuning, workload_key
from znorm.lab.methods import METHODS
from znorm.lab.methods import label as label_of
from znorm.lab.metrics.score import Column
from znorm.lab.metrics.scores import columns_of as score_columns
from znorm.lab.own_code import metric_name
from znorm.lab.reporting import trivial_baseline
from znorm.lab.reporting.trivial_baseline import TRIVIAL_BASELINES
from znorm.lab.runs.folder import Run
from znorm.lab.spec import RunSpec
from znorm.lab.stats import Interval, t_interval
from znorm.lab.tasks import TASKS
from znorm.lab.text import link, literal
from znorm.transforms import TRANSFORMS

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

# The share of steps below which a clip is none.
HARDLY_EVER = 0.01

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
# The files of a run with counts of its test images, by masks or by classes.
_COUNTS = ("cases.csv",)
# Those that a terminal has room for.
TERMINAL = {
    "classes": ("test_accuracy", "train_loss", "seconds"),
    "mask": ("test_f1", "test_tversky", "test_hausdorff", "seconds"),
}


def columns_of(output: str, unit: str | None = None) -> list[Column]:
    """The columns of a kind of task; the first is the headline, by which methods are compared.

    ``unit`` is that of distances, by default pixels.
    """
    columns = [*score_columns(output, unit or "pixels"), *_COMMON, _AT_BEST_VALIDATION[output]]
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
    """A method.

    Parameters
    ----------
    method, label : str
    runs : tuple of Run
    cells : tuple of Cell
        A cell for each column of the table.
    comparisons : dict of str to Comparison
        With the baseline in the headline, by how the end of a run is read (`ENDINGS`); empty for
        the baseline itself, and where runs on different images would be mixed.
    difference : Cell or None
        That of the last epoch.
    acceleration : Acceleration or None
    epochs_to_baseline : Cell
        The median of it, and each run's.
    troubles : tuple of Value
    clipped : float or None
        The share of steps in which its clip acted, the mean over tensors and runs; None where it
        has none, or runs of earlier versions did not count.
    counts : tuple of Value
        The seed of each finished run that kept counts of its test images, by which scores can be
        worked out again, and the file of them.
    """

    method: str
    label: str
    runs: tuple[Run, ...]
    cells: tuple[Cell, ...]
    comparisons: Mapping[str, Comparison]
    difference: Cell | None
    acceleration: Acceleration | None
    epochs_to_baseline: Cell
    troubles: tuple[Value, ...]
    clipped: float | None = None
    counts: tuple[Value, ...] = ()

    @property
    def remark(self) -> str | None:
        """A word on a clip that hardly ever acts."""
        if self.clipped is None or self.clipped >= HARDLY_EVER:
            return None
        share = "never active" if self.clipped == 0 else f"active in {self.clipped:.1%} of steps"
        spec = self.runs[0].spec
        if len(spec.transform) > 1 or spec.weight_decay:
            return f"the clip was {share}"  # and the method does something else, too
        if self.clipped == 0:
            return f"the clip was {share}: this method is the baseline"
        return f"the clip was {share}: in all others this method is the baseline"

    @property
    def comparison(self) -> Comparison | None:
        """The comparison of the last epoch."""
        return self.comparisons.get("last epoch")


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
    question : Question or None
        What the runs are to answer; None without a method beside the baseline.
    tuning : Tuning or None
        Where each method's runs have what was chosen for it: learning rates and schedules differ.
    trials : tuple of Run
        Those by which was chosen.
    former : tuple of Run
        Those of what was chosen once, from fewer trials.
    fold : int or None
        The number of its fold, where it is one of several that are tested in turn.
    """

    spec: RunSpec
    runs: tuple[Run, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    trivial_baseline: Mapping[str, Any] | None
    trivial_baseline_link: str
    question: Question | None = None
    tuning: Tuning | None = None
    trials: tuple[Run, ...] = ()
    former: tuple[Run, ...] = ()
    fold: int | None = None

    @property
    def suffix(self) -> str:
        """The words that tell it from others of the same task and model."""
        fold = "" if self.fold is None else f", fold {self.fold + 1}"
        return fold if self.tuning is None else f"{fold}, each method tuned"

    @property
    def asked(self) -> Row | None:
        """The row of the question's method; of several configurations of it the first."""
        asked = None if self.question is None else self.question.method
        return next((row for row in self.rows if row.method == asked), None)

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


def gather(
    root: Path,
    runs: Sequence[Run],
    question: Question | None = None,
    tunings: Mapping[str, Tuning] | None = None,
) -> list[Table]:
    """One table for each configuration among ``runs``; links relative to ``root``.

    ``question`` is the one that they were begun with; of runs that do not have its method, and
    where there is none, it is that of `Question.of`. Of a workload that was tuned (``tunings`` has
    them by `workload_key`) there is one more, of each method at its own best.
    """
    groups: dict[str, list[Run]] = {}
    tuned: dict[str, list[Run]] = {}
    trials: dict[str, list[Run]] = {}
    former: dict[str, list[Run]] = {}
    # A copy of a run is not another one.
    for run in {run.spec.canonical(): run for run in reversed(runs)}.values():
        key = workload_key(run.spec) if tunings else ""
        tuning = (tunings or {}).get(key)
        if tuning is None or tuning.is_shared(run.spec):
            groups.setdefault(run.spec.configuration, []).append(run)
        if tuning is not None and tuning.is_trial(run.spec):
            trials.setdefault(key, []).append(run)
        if tuning is not None and tuning.is_tuned(run.spec):
            tuned.setdefault(key, []).append(run)
        if tuning is not None and tuning.is_former(run.spec):
            former.setdefault(key, []).append(run)
    tables = [_table(root, members, question) for members in groups.values()]
    for key, members in tuned.items():
        table = _table(root, members, question)
        if question is not None and table.question and table.question.method != question.method:
            table = replace(table, question=None)  # a method that was not tuned is not asked of
        tables.append(
            replace(
                table,
                tuning=(tunings or {})[key],
                trials=tuple(trials.get(key, ())),
                former=tuple(former.get(key, ())),
            )
        )
    numbers: dict[str, list[int]] = {}
    for table in tables:
        numbers.setdefault(table.spec.across_folds, []).append(table.spec.data.fold or 0)
    tables = [
        replace(table, fold=table.spec.data.fold or 0)
        if table.spec.data.folds is not None and len(set(there)) == len(there)
        else table
        for table in tables
        for there in (numbers[table.spec.across_folds],)
    ]
    # Folds of the same images stand together, in their order.
    places = {table.spec.across_folds: place for place, table in reversed([*enumerate(tables)])}
    return sorted(tables, key=lambda table: (places[table.spec.across_folds], table.fold or 0))


def _table(root: Path, members: Sequence[Run], question: Question | None) -> Table:
    spec = members[0].spec
    trivial = trivial_baseline.kept(root, spec)
    images = None if trivial is None else trivial.get("fingerprint")
    if images is not None and not images_of(members) <= {images}:
        trivial = None
    address = link(root, trivial_baseline.folder(root, spec) / "result.json")
    columns = _columns(members)
    asked = question
    methods = [run.spec.method for run in members]
    if asked is None or asked.method not in methods or REFERENCE not in methods:
        # Another method's, of whom the same is wanted, and as often looked at.
        worth, sequential = (WORTH, False) if asked is None else (asked.worth, asked.sequential)
        asked = None
        if REFERENCE in methods:
            asked = Question.of(methods, worth, sequential=sequential)
    sequential = asked is not None and asked.sequential
    rows = _rows(root, members, columns, sequential=sequential)
    return Table(spec, tuple(members), columns, rows, trivial, address, asked)


def images_of(runs: Iterable[Run]) -> set[str]:
    """The fingerprints of the images that runs were trained on, of those that tell."""
    fingerprints = ((run.result or {}).get("hashes", {}).get("data") for run in runs)
    return {fingerprint for fingerprint in fingerprints if fingerprint}


def _columns(runs: Sequence[Run]) -> tuple[Column, ...]:
    """The columns of the runs' task, without optional ones that no finished run has."""
    done = [run.metrics for run in runs if run.status == "done"]
    return tuple(
        column
        for column in (
            *columns_of(TASKS[runs[0].spec.task].output, runs[0].spec.data.unit),
            *_own_columns(runs[0].spec),
        )
        if not (column.optional and done) or any(column.key in metrics for metrics in done)
    )


def _own_columns(spec: RunSpec) -> list[Column]:
    """Those of the user's own metrics, behind all others."""
    names = [metric_name(place) for place in spec.metrics or ()]
    return [Column(f"test_{name}", f"Test {name}", 4, place=90) for name in names]


def _rows(
    root: Path, runs: Sequence[Run], columns: Sequence[Column], *, sequential: bool
) -> tuple[Row, ...]:
    headline = columns[0]
    reference = [run for run in runs if run.spec.method == REFERENCE]
    # The registry's order, then the user's own methods. A name alone does not make a method: the
    # same one may stand for another transform in runs of another day.
    order = {name: position for position, name in enumerate(METHODS)}
    members: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: order.get(run.spec.method, len(order))):
        members.setdefault(f"{run.spec.method} {run.spec.hash}", []).append(run)
    labels = [label_of(group[0].spec.method) for group in members.values()]
    rows = []
    for group in members.values():
        method = group[0].spec.method
        mine = sorted(group, key=lambda run: run.spec.seed)
        title = label_of(method)
        if labels.count(title) > 1:
            title += f" ({group[0].spec.hash})"
        done = [run for run in mine if run.status == "done"]
        mixed = len(images_of(done)) > 1
        cells = tuple(_cell(root, column, done, mixed=mixed) for column in columns)
        pairs = pairs_of(mine, reference)
        differences_mixed = len(images_of(pairs.runs)) > 1
        comparisons = {}
        if method != REFERENCE and reference and not differences_mixed:
            comparisons = {
                name: compare_pairs(pairs, headline.key, ending, sequential=sequential)
                for name, ending in ENDINGS.items()
            }
        difference = None
        if method != REFERENCE and pairs.made:
            if differences_mixed:
                difference = Cell(None, "no mean", "", ())
            else:
                difference = _difference(root, headline, comparisons["last epoch"])
        arrived = acceleration(mine, reference, headline.key)
        troubles = tuple(
            Value(run.spec.seed, _trouble(run), _link(root, run)) for run in mine if run not in done
        )
        refused = dict(pairs.refused)
        troubles += tuple(
            Value(run.spec.seed, refused[run.spec.seed], _link(root, run))
            for run in done
            if run.spec.seed in refused
        )
        troubles += tuple(
            Value(run.spec.seed, lacking, _events(root, run))
            for run in done
            if (lacking := _lacks_epochs(run)) is not None
        )
        reached = _epochs_to_baseline(root, arrived)
        rows.append(
            Row(
                method,
                title,
                tuple(mine),
                cells,
                comparisons,
                difference,
                arrived,
                reached,
                troubles,
                _clipped(mine),
                tuple(_counts(root, done)),
            )
        )
    return _held_together(rows)


def _clipped(runs: Sequence[Run]) -> float | None:
    """The share of steps in which a method's clip acted; None where it has none that counts."""
    names = [name for link in runs[0].spec.transform for name in link]
    if not any(name in TRANSFORMS and TRANSFORMS[name].is_clip for name in names):
        return None
    shares = []
    for entry in (entry for run in runs for entry in run.history):
        of_layers = [values.get("clipped", 0.0) for values in entry.get("receipt", {}).values()]
        if "clipped" in entry or of_layers:
            shares.append(entry["clipped"] if "clipped" in entry else statistics.fmean(of_layers))
    return statistics.fmean(shares) if shares else None


def _counts(root: Path, runs: Sequence[Run]) -> Iterator[Value]:
    for run in runs:
        for name in _COUNTS:
            if (run.folder / name).exists():
                yield Value(run.spec.seed, str(run.spec.seed), link(root, run.folder / name))


def _held_together(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The rows, with p values that count how many methods are compared."""
    together: dict[str, dict[int, Comparison]] = {}
    for name in ENDINGS:
        places = [place for place, row in enumerate(rows) if name in row.comparisons]
        made = hold_together([rows[place].comparisons[name] for place in places])
        together[name] = dict(zip(places, made, strict=True))
    return tuple(
        replace(row, comparisons={name: together[name][place] for name in row.comparisons})
        for place, row in enumerate(rows)
    )


def _difference(root: Path, headline: Column, comparison: Comparison) -> Cell:
    """The mean difference, and each pair's with the method's run of it."""
    if comparison.interval is None:
        return Cell(None, "–", "", ())
    key = headline.key
    values = tuple(
        Value(pair.seed, _signed(headline.show(of_pair)), _link(root, pair.run))
        for pair in comparison.pairs.made
        if math.isfinite(of_pair := last_epoch(pair.run, key) - last_epoch(pair.reference, key))
    )
    return _of_interval(headline, comparison.interval, values, sign=True)


def _signed(text: str) -> str:
    return text.replace("-", "−") if text.startswith("-") else f"+{text}"


def _epochs_to_baseline(root: Path, arrived: Acceleration | None) -> Cell:
    """The median epoch in which runs first scored what the baseline of their seed ended with.

    Where fewer than half of them did, how many. Where events.jsonl is not whole, nothing.
    """
    if arrived is None or not arrived.arrivals:
        return Cell(None, "–", "", ())
    values = tuple(
        Value(
            arrival.run.spec.seed,
            "not reached" if arrival.epoch is None else str(arrival.epoch),
            _events(root, arrival.run),
        )
        for arrival in arrived.arrivals
    )
    if len(images_of([arrival.run for arrival in arrived.arrivals])) > 1:
        return Cell(None, "no mean", "", values)
    some = f"reached by {arrived.reached} of {len(values)}"
    if math.isinf(arrived.epochs):
        return Cell(None, some, "", values)
    median = f"{arrived.epochs:g}"
    text = median if arrived.reached == len(values) else f"{median} ({some})"
    return Cell(Interval(arrived.epochs, None), text, "", values)


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
    mixed: bool = False,
) -> Cell:
    """Mean and interval; of runs that are ``mixed``, on different images, there are none."""
    if not numbers:
        return Cell(None, "–", "", ())
    if mixed and len(numbers) > 1:
        return Cell(None, "no mean", "", values)
    return _of_interval(column, t_interval(numbers), values)


def _of_interval(
    column: Column, interval: Interval, values: tuple[Value, ...], *, sign: bool = False
) -> Cell:
    mean = column.show(interval.mean)
    if sign and interval.mean >= 0:
        mean = f"+{mean}"
    half = "" if interval.half is None else column.show(interval.half)
    return Cell(interval, mean.replace("-", "−"), half, values)


def _lacks_epochs(run: Run) -> str | None:
    """A word on events of a finished run that are missing, if they are there at all."""
    there = (run.folder / "events.jsonl").exists()
    epochs = len(run.history)
    if not there or epochs >= run.epochs:
        return None
    return f"events.jsonl is damaged: {epochs} of {run.epochs} epochs can be read"


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
    title = (
        f"{spec.task}, {spec.model}{table.suffix}: mean ± 95 % t interval over {table.seeds} seed"
    )
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
        remarks = [f"seed {value.seed} {value.text}" for value in row.troubles]
        trouble = "; ".join([row.remark, *remarks] if row.remark else remarks)
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
