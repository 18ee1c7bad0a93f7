"""All folds of the same images at once: how methods differ over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from znorm.lab.datasets import DataSpec
from znorm.lab.evidence.verdict import decide
from znorm.lab.metrics.score import Column
from znorm.lab.reporting.tables import Row, Table
from znorm.lab.stats import Interval, resampled_interval
from znorm.lab.tasks import TASKS

__all__ = ["FoldRow", "Folds", "over_folds"]


@dataclass(frozen=True)
class FoldRow:
    """A method.

    Parameters
    ----------
    label : str
    scores : tuple of float or None
        Of each fold the mean over seeds.
    mean : float or None
        Of these; None where some are missing.
    gain : Interval or None
        Against the baseline, over folds; None for the baseline, and where some are missing.
    """

    label: str
    scores: tuple[float | None, ...]
    mean: float | None
    gain: Interval | None


@dataclass(frozen=True)
class Folds:
    """The folds of the same images.

    Parameters
    ----------
    name : str
        Of task and model.
    column : Column
        Of the score.
    anchors : tuple of str
        Of each fold's section.
    numbers : tuple of int
        Of these folds, from 1.
    whole : int
        The number of folds that there are to be.
    rows : tuple of FoldRow
    headline : str
        The answer, over all folds.
    decision : str
    """

    name: str
    column: Column
    anchors: tuple[str, ...]
    numbers: tuple[int, ...]
    whole: int
    rows: tuple[FoldRow, ...]
    headline: str
    decision: str

    def show(self, score: float | None) -> str:
        return "" if score is None else self.column.show(score)

    def signed(self, gain: Interval | None) -> str:
        """A gain with its interval."""
        if gain is None:
            return ""
        low, high = _signed(self, gain.low), _signed(self, gain.high)
        return f"{_signed(self, gain.mean)} ({low} to {high})"


def _signed(folds: Folds, value: float) -> str:
    return f"{'−' if value < 0 else '+'}{folds.column.show(abs(value))}"


def over_folds(tables: Sequence[Table]) -> list[Folds]:
    """A summary of each set of tables that are folds of the same images.

    Parameters
    ----------
    tables : sequence of Table
        As the page has them: the number of one is that of its section.
    """
    groups: dict[str, list[tuple[int, Table]]] = {}
    for number, table in enumerate(tables, start=1):
        if table.fold is not None:
            groups.setdefault(table.spec.across_folds, []).append((number, table))
    return [_summary(members) for members in groups.values()]


def _summary(members: Sequence[tuple[int, Table]]) -> Folds:
    members = sorted(members, key=lambda member: member[1].fold or 0)
    tables = [table for _, table in members]
    first = tables[0]
    labels = dict.fromkeys(row.label for table in tables for row in table.rows)
    rows = [_row(label, tables) for label in labels]
    headline, decision = _answer(tables, rows)
    return Folds(
        f"{TASKS[first.spec.task].label}, {first.spec.model}",
        first.columns[0],
        tuple(f"runs-{number}" for number, _ in members),
        tuple((table.fold or 0) + 1 for table in tables),
        first.spec.data.folds or len(tables),
        tuple(row for row in rows if row is not None),
        headline,
        decision,
    )


def _row(label: str, tables: Sequence[Table]) -> FoldRow | None:
    of_folds = [next((row for row in t.rows if row.label == label), None) for t in tables]
    scores = tuple(_score(row) for row in of_folds)
    known = [score for score in scores if score is not None]
    if not known:
        return None
    gains = [
        row.comparison.interval.mean
        for row in of_folds
        if row is not None and row.comparison is not None and row.comparison.interval is not None
    ]
    whole = tables[0].spec.data.folds or 0
    gain = None
    # Fewer folds are another question: the means of two methods would be over other images.
    if len(gains) == whole > 1:
        gain = resampled_interval(gains, _ratio(tables[0].spec.data))
    mean = sum(known) / len(known) if len(known) == whole else None
    return FoldRow(label, scores, mean, gain)


def _ratio(data: DataSpec) -> float:
    """The test images of a fold to those that it is trained on: validation images are not."""
    test = data.test_share or 1 / (data.folds or 2)
    return test / ((1 - test) * (1 - (data.validation or 0)))


def _score(row: Row | None) -> float | None:
    return None if row is None or row.cells[0].interval is None else row.cells[0].interval.mean


def _answer(tables: Sequence[Table], rows: Sequence[FoldRow | None]) -> tuple[str, str]:
    """The answer to the question over all folds, and its decision."""
    question, asked = tables[0].question, tables[0].asked
    if question is None or asked is None:
        return "", ""
    whole = tables[0].spec.data.folds or 0
    row = next((one for one in rows if one is not None and one.label == asked.label), None)
    if row is None or row.gain is None:
        text = f"Undecided over folds: pairs of runs are not there yet in all {whole} of them."
        return text, "undecided"
    decision = decide(row.gain, question.worth)
    fell = sum(
        len(one.comparison.pairs.only_method_diverged)
        for table in tables
        for one in table.rows
        if one.label == asked.label and one.comparison is not None
    )
    if not row.gain.half:
        text = "Undecided over folds: all have the same difference, of which no interval is made."
        return text, "undecided"
    if decision == "adopt" and fell:
        return f"Undecided over folds: {asked.label} diverged in {fell} runs.", "undecided"
    named = {
        "adopt": f"Adopt {asked.label}: it is ahead",
        "do not adopt": f"Do not adopt {asked.label}: no gain that is worth it",
        "undecided": "Undecided: the interval holds both 0 and a gain",
    }[decision]
    return f"{named}, over {whole} folds.", decision
