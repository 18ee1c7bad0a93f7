"""The prospects of a grid's seeds, and of more, for a terminal, before it is run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.table import Table as RichTable

from znorm.lab.evidence.pairs import REFERENCE
from znorm.lab.evidence.prospects import prospects
from znorm.lab.evidence.question import WORTH, Question
from znorm.lab.methods import label
from znorm.lab.reporting.tables import columns_of, gather
from znorm.lab.runs.cost import Cost
from znorm.lab.runs.folder import Run
from znorm.lab.spec import RunSpec
from znorm.lab.tasks import TASKS
from znorm.lab.text import duration, literal

__all__ = ["prospects_on_terminal"]


def prospects_on_terminal(
    specs: Sequence[RunSpec], out: Path, costs: Sequence[Cost], worth: float | None = None
) -> list[RichTable]:
    """A table for each configuration that compares a method with the baseline.

    The spread of differences is that of the runs that are under ``out`` already; without two pairs
    of them it is not known, and differences are in units of it.
    """
    kept = Question.read(out)
    groups: dict[str, list[RunSpec]] = {}
    for spec in specs:
        groups.setdefault(spec.configuration, []).append(spec)
    tables = []
    for configuration, members in groups.items():
        methods = [spec.method for spec in members]
        question = Question.of(methods, WORTH if worth is None else worth)
        if question is None or REFERENCE not in methods:
            continue
        if kept is not None and kept.method in methods:
            question = replace(kept, worth=kept.worth if worth is None else worth)
        runs = [Run.at(out, spec) for spec in members]
        spread = _spread([run for run in runs if run.result is not None], question)
        pairs = len({spec.seed for spec in members if spec.method == question.method})
        cost = next((one for one in costs if one.spec.configuration == configuration), None)
        tables.append(_table(members[0], question, pairs, spread, cost))
    return tables


def _spread(runs: Sequence[Run], question: Question) -> float:
    if not runs:
        return math.nan
    (table,) = gather(Path(), runs, question)
    rows = [row for row in table.rows if row.method == question.method and row.comparison]
    return rows[0].comparison.spread if rows and rows[0].comparison else math.nan


def _table(
    spec: RunSpec, question: Question, pairs: int, spread: float, cost: Cost | None
) -> RichTable:
    headline = columns_of(TASKS[spec.task].output)[0]
    known = spread > 0
    scale = headline.scale if known else 1.0
    unit = ("points" if headline.scale == 100 else headline.title) if known else "spreads"
    title = f"What seeds can show: {label(question.method)} against the baseline, {spec.model}"
    rich = RichTable(title=literal(title, "table.title"), title_justify="left")
    rich.add_column("Seeds", justify="right")
    rich.add_column("Smallest p of flipped signs", justify="right")
    rich.add_column(f"± of the 95 % interval, {unit}", justify="right")
    rich.add_column(f"Found 4 times in 5, {unit}", justify="right")
    worth = f"{question.worth * headline.scale:g}"
    rich.add_column(f"A gain of {worth} is found", justify="right")
    rich.add_column("Both methods take", justify="right")
    for one in prospects(
        pairs, spread if known else 1.0, question.worth, sequential=question.sequential
    ):
        rich.add_row(
            str(one.pairs),
            f"{one.smallest_p:.2g}",
            "–" if math.isinf(one.half) else f"{scale * one.half:.2f}",
            "–" if math.isinf(one.detectable) else f"{scale * one.detectable:.2f}",
            f"{one.power:.0%}" if known else "–",
            duration(2 * one.pairs * cost.seconds) if cost else "–",
        )
    if spread == 0:
        caption = "In spreads: the runs at hand all differ by the same, which tells of none."
    elif known:
        caption = (
            f"By the spread of the runs at hand, {scale * spread:.2f} {unit}, itself uncertain."
        )
    else:
        caption = (
            "In spreads of the differences between paired runs, which no runs at hand tell yet."
        )
    if question.sequential:
        caption += (
            " Seeds are added here until it is decided: intervals hold at all looks at once, and "
            "what is found is so by one look at that many."
        )
    rich.caption, rich.caption_justify = literal(caption), "left"
    return rich
