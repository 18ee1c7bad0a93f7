"""The claims of the paper's text, each a line with what runs here show of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from znorm.lab.evidence.comparison import compare_pairs
from znorm.lab.evidence.pairs import REFERENCE, pairs_of
from znorm.lab.evidence.question import WORTH
from znorm.lab.evidence.verdict import verdict
from znorm.lab.reporting.evidence import difference
from znorm.lab.reporting.tables import Row, Table

__all__ = ["Claim", "claims"]

METHOD = "znorm"

State = Literal["supported", "contradicted", "not decided", "not tested here"]


@dataclass(frozen=True)
class Claim:
    """A claim of the paper.

    Parameters
    ----------
    text : str
        In our words.
    state : str
        "supported" where every model that was trained here shows it, "contradicted" where one shows
        the opposite.
    evidence : tuple of str
        A line for each model.
    """

    text: str
    state: State
    evidence: tuple[str, ...]


# Of one model: whether its runs show a claim (True), its opposite (False) or neither, and how.
Found = tuple[bool | None, str]


def claims(tables: Sequence[Table], away: Collection[str] = ()) -> list[Claim]:
    """The claims, against the tables of runs on the paper's own tasks.

    Those of the configurations in ``away``, whose settings are not the paper's, are shown and
    decide nothing.
    """
    checks: dict[str, Callable[[Table, Row], Found | None]] = {
        "ZNorm scores higher than the plain optimizer on every model.": _above_the_baseline,
        "ZNorm scores higher than the other methods on every model.": _above_the_others,
        "ZNorm accelerates training: it reaches the baseline's final score sooner.": _sooner,
    }
    made = []
    for text, check in checks.items():
        found: list[tuple[bool | None, str]] = []
        for table in tables:
            row = next((one for one in table.rows if one.method == METHOD), None)
            answer = None if row is None else check(table, row)
            if answer is None:
                continue
            shown, text = answer
            where = f"{table.spec.task}, {table.spec.model}"
            if table.spec.configuration in away:
                shown, where = None, f"{where}, not at the paper's settings"
            found.append((shown, f"{where}: {text}"))
        made.append(Claim(text, _state([shown for shown, _ in found]), tuple(t for _, t in found)))
    return made


def _state(shown: Sequence[bool | None]) -> State:
    if not shown:
        return "not tested here"
    if False in shown:
        return "contradicted"
    return "supported" if all(shown) else "not decided"


def _above_the_baseline(table: Table, row: Row) -> Found | None:
    if row.comparison is None or row.comparison.interval is None:
        return None
    decision = verdict(row.comparison, WORTH).decision
    shown = True if decision == "adopt" else None
    if row.comparison.interval.high < 0:
        shown = False
    text = difference(table.columns[0], row.comparison.interval)
    return shown, f"{text} over {len(row.comparison.differences)} pairs"


def _above_the_others(table: Table, row: Row) -> Found | None:
    shown: list[bool | None] = []
    texts = []
    for other in table.rows:
        if other.method in (METHOD, REFERENCE):
            continue
        found = compare_pairs(pairs_of(row.runs, other.runs), table.columns[0].key)
        if found.interval is None:
            continue
        above = True if found.interval.low > 0 else False if found.interval.high < 0 else None
        shown.append(above)
        texts.append(f"{difference(table.columns[0], found.interval)} to {other.label}")
    if not shown:
        return None
    answer = False if False in shown else True if all(shown) else None
    return answer, "; ".join(texts)


def _sooner(table: Table, row: Row) -> Found | None:
    baseline = next((one for one in table.rows if one.method == REFERENCE), None)
    if baseline is None or not (mine := row.acceleration) or not (its := baseline.acceleration):
        return None
    if not mine.arrivals:
        return None
    count = f"{mine.reached} of {len(mine.arrivals)} runs ever reach it"
    if math.isinf(mine.epochs):
        # Of one or two runs that is not much.
        return (False if len(mine.arrivals) > 2 else None), f"fewer than half do: {count}"
    text = f"half of them after {mine.epochs:g} epochs, the baseline's own after {its.epochs:g}"
    return (True if mine.epochs < its.epochs else None), f"{text}; {count}"
