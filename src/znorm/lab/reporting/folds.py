"""All folds of the same images at once: how methods differ over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from znorm.lab.evidence.verdict import decide
from znorm.lab.metrics.score import Column
from znorm.lab.reporting.tables import Row, Table, fold_key
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
    mean : float
        Of these.
    gain : Interval or None
        Against the baseline, over folds; None for the baseline, and without two folds of pairs.
    """

    label: str
    scores: tuple[float | None, ...]
    mean: float
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
    rows : tuple of FoldRow
    headline : str
        The answer, over all folds.
    decision : str
    """

    name: str
    column: Column
    anchors: tuple[str, ...]
    rows: tuple[FoldRow, ...]
    headline: str
    decision: str

    def show(self, score: float | None) -> str:
        return "" if score is None else self.column.show(score)

    def signed(self, gain: Interval | None) -> str:
        """A gain with its interval."""
        if gain is None:
            return ""
        ends = (
            ""
            if gain.half is None
            else f" ({_signed(self, gain.low)} to {_signed(self, gain.high)})"
        )
        return f"{_signed(self, gain.mean)}{ends}"


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
            groups.setdefault(fold_key(table.spec), []).append((number, table))
    return [_summary(members) for members in groups.values()]


def _summary(members: Sequence[tuple[int, Table]]) -> Folds:
    members = sorted(members, key=lambda member: member[1].fold or 0)
    tables = [table for _, table in members]
    first = tables[0]
    labels = dict.fromkeys(row.label for table in tables for row in table.rows)
    rows = [_row(label, tables) for label in labels]
    headline, decision = _answer(first, tables, rows)
    return Folds(
        f"{TASKS[first.spec.task].label}, {first.spec.model}",
        first.columns[0],
        tuple(f"runs-{number}" for number, _ in members),
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
    share = tables[0].spec.data.test_share
    gain = resampled_interval(gains, share) if len(gains) > 1 and share else None
    return FoldRow(label, scores, sum(known) / len(known), gain)


def _score(row: Row | None) -> float | None:
    return None if row is None or row.cells[0].interval is None else row.cells[0].interval.mean


def _answer(
    first: Table, tables: Sequence[Table], rows: Sequence[FoldRow | None]
) -> tuple[str, str]:
    """The answer to the question over all folds, and its decision."""
    question, asked = first.question, first.asked
    if question is None or asked is None:
        return "", ""
    row = next((one for one in rows if one is not None and one.label == asked.label), None)
    if row is None or row.gain is None:
        return f"Over folds nothing can be said of {asked.label} yet.", "undecided"
    decision = decide(row.gain, question.worth)
    fell = sum(
        len(one.comparison.pairs.only_method_diverged)
        for table in tables
        for one in table.rows
        if one.label == asked.label and one.comparison is not None
    )
    if decision == "adopt" and fell:
        return f"Undecided over folds: {asked.label} diverged in {fell} runs.", "undecided"
    named = {
        "adopt": f"Adopt {asked.label}: it is ahead",
        "do not adopt": f"Do not adopt {asked.label}: no gain that is worth it",
        "undecided": "Undecided: the interval holds both 0 and a gain",
    }[decision]
    return f"{named}, over {len(tables)} folds.", decision
