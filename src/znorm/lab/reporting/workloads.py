"""All tables of a page at once: how methods rank, and how often they are near the fastest.

A workload is a table: one task, model and setting.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from znorm.lab.methods import label as label_of
from znorm.lab.reporting.evidence import p_value
from znorm.lab.reporting.tables import Row, Table
from znorm.lab.stats import friedman_test, mean_ranks, nemenyi_distance, performance_profile

__all__ = ["Standing", "Workloads", "over_workloads"]

# Of the fastest method's epochs to the baseline's final score.
FACTORS = (1.0, 1.5, 2.0, 4.0)


@dataclass(frozen=True)
class Standing:
    """A method: its mean rank, and the share of workloads within each factor of the fastest."""

    label: str
    rank: float
    shares: tuple[float, ...]


@dataclass(frozen=True)
class Workloads:
    """The standings, the first one first, and what they can show."""

    count: int
    standings: tuple[Standing, ...]
    remark: str


def over_workloads(tables: Sequence[Table]) -> Workloads | None:
    """The standings of the methods that all tables have; None for fewer than two of either."""
    rows: list[dict[str, Row]] = []
    for table in tables:
        if not table.warnings and table.tuning is None:  # which is the same workload again
            rows.append({r.method: r for r in table.rows if r.cells[0].interval is not None})
    if len(rows) < 2:
        return None
    methods = [method for method in rows[0] if all(method in one for one in rows)]
    if len(methods) < 2:
        return None
    scores = {method: [_score(one[method]) for one in rows] for method in methods}
    times = {method: [_time(one[method]) for one in rows] for method in methods}
    ranks, shares = mean_ranks(scores), performance_profile(times, FACTORS)
    standings = [Standing(label_of(m), ranks[m], tuple(shares[m])) for m in methods]
    remark = ""
    if len(methods) > 2:
        distance = nemenyi_distance(len(methods), len(rows))
        chance = p_value(friedman_test(scores))
        remark = (
            f"Friedman's test that ranks are a matter of chance: p = {chance}. Mean ranks "
            f"differ, over all pairs of methods, from {distance:.2f} on (Nemenyi)."
        )
    return Workloads(len(rows), tuple(sorted(standings, key=lambda one: one.rank)), remark)


def _score(row: Row) -> float:
    interval = row.cells[0].interval
    assert interval is not None
    return interval.mean


def _time(row: Row) -> float:
    arrived = row.acceleration
    return math.inf if arrived is None or math.isnan(arrived.epochs) else arrived.epochs
