"""All tables of a page at once: how methods rank, and how often they are near the fastest.

A workload is a table: one task, model and setting.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from znorm.lab.methods import label as label_of
from znorm.lab.reporting.evidence import p_value
from znorm.lab.reporting.tables import Row, Table
from znorm.lab.reporting.workload_figures import profiles, ranks_on_a_line
from znorm.lab.stats import (
    friedman_test,
    interquartile_mean,
    mean_ranks,
    nemenyi_distance,
    not_told_apart,
    performance_profile,
)

__all__ = ["Standing", "Workloads", "over_workloads"]

# Of the fastest method's epochs to the baseline's final score.
FACTORS = (1.0, 1.5, 2.0, 4.0)


@dataclass(frozen=True)
class Standing:
    """A method.

    Parameters
    ----------
    label : str
    rank : float
        The mean over workloads.
    gain : float
        Against the baseline, the interquartile mean over all pairs of all workloads, in the unit of
        the scores; nan for the baseline itself.
    shares : tuple of float
        Of workloads, within each factor of the fastest.
    """

    label: str
    rank: float
    gain: float
    shares: tuple[float, ...]

    @property
    def gain_in_points(self) -> str:
        if math.isnan(self.gain):
            return "–"
        return f"{'+' if self.gain >= 0 else '−'}{100 * abs(self.gain):.2f}"


@dataclass(frozen=True)
class Workloads:
    """The standings, the first one first, what they can show, and figures of them as SVG."""

    count: int
    standings: tuple[Standing, ...]
    remark: str
    panels: tuple[str, ...]


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
    standings = [
        Standing(label_of(m), ranks[m], _gain([one[m] for one in rows]), tuple(shares[m]))
        for m in methods
    ]
    labelled = {label_of(m): m for m in methods}
    curves = {label: _profile(times, m) for label, m in labelled.items()}
    remark, panels = "", [profiles(curves)]
    if len(methods) > 2:
        distance = nemenyi_distance(len(methods), len(rows))
        by_label = {label: ranks[m] for label, m in labelled.items()}
        panels.insert(0, ranks_on_a_line(by_label, distance, not_told_apart(by_label, distance)))
        chance = p_value(friedman_test(scores))
        remark = (
            f"Friedman's test that ranks are a matter of chance: p = {chance}. Mean ranks "
            f"differ, over all pairs of methods, from {distance:.2f} on (Nemenyi)."
        )
    standings.sort(key=lambda one: one.rank)
    return Workloads(len(rows), tuple(standings), remark, tuple(panels))


def _gain(rows: Sequence[Row]) -> float:
    return interquartile_mean(
        [gain for row in rows if row.comparison for gain in row.comparison.differences]
    )


def _profile(times: Mapping[str, Sequence[float]], method: str) -> list[tuple[float, float]]:
    """The share of workloads by the factor, wherever it changes."""
    best = [min(row) for row in zip(*times.values(), strict=True)]
    ratios = [own / first for own, first in zip(times[method], best, strict=True) if own < math.inf]
    factors = sorted({1.0, *ratios})
    return list(zip(factors, performance_profile(times, factors)[method], strict=True))


def _score(row: Row) -> float:
    interval = row.cells[0].interval
    assert interval is not None
    return interval.mean


def _time(row: Row) -> float:
    arrived = row.acceleration
    return math.inf if arrived is None or math.isnan(arrived.epochs) else arrived.epochs
