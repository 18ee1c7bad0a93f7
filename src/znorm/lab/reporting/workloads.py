"""All tables of a page at once: how methods rank, and how often they are near the fastest.

A workload is a table: one task, model and setting.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from znorm.lab.reporting.evidence import p_value
from znorm.lab.reporting.strokes import Stroke
from znorm.lab.reporting.tables import Row, Table
from znorm.lab.reporting.workload_figures import profiles, ranks_on_a_line
from znorm.lab.runs.folder import Run
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


def over_workloads(
    tables: Sequence[Table], strokes: Mapping[str, Stroke] | None = None
) -> Workloads | None:
    """The standings of the methods that all tables have; None for fewer than two of either.

    A run that diverged or failed counts as a score of 0: a method whose survivors are ahead is not.
    """
    # Runs on different images are not averaged, and a workload that was tuned is the same again.
    # Folds are the same workload over and over, and have a section of their own.
    used = [
        table
        for table in tables
        if not table.warnings and table.tuning is None and table.fold is None
    ]
    rows = [{row.method: row for row in reversed(table.rows) if _ended(row)} for table in used]
    used = [table for table, one in zip(used, rows, strict=True) if one]
    rows = [one for one in rows if one]
    if len(rows) < 2:
        return None
    methods = [method for method in rows[0] if all(method in one for one in rows)]
    if len(methods) < 2:
        return None
    labels = {method: rows[0][method].label for method in methods}
    keys = [table.columns[0].key for table in used]
    scores, times, gains = {}, {}, {}
    for method in methods:
        mine = [(one[method], key) for one, key in zip(rows, keys, strict=True)]
        scores[method] = [statistics.fmean(_scores(row, key)) for row, key in mine]
        times[method] = [_time(row) for row, _ in mine]
        gains[method] = interquartile_mean([gain for row, key in mine for gain in _gains(row, key)])
    ranks, shares = mean_ranks(scores), performance_profile(times, FACTORS)
    standings = [
        Standing(labels[method], ranks[method], gains[method], tuple(shares[method]))
        for method in methods
    ]
    remarks = []
    of_each = {labels[method]: _profile(times, method) for method in methods}
    panels = [profiles(of_each, strokes)]
    if len(methods) > 2:
        distance = nemenyi_distance(len(methods), len(rows))
        by_label = {labels[method]: ranks[method] for method in methods}
        panels.insert(0, ranks_on_a_line(by_label, distance, not_told_apart(by_label, distance)))
        remarks.append(
            f"Friedman's test that ranks are a matter of chance: p = "
            f"{p_value(friedman_test(scores))}. Mean ranks differ, over all pairs of methods, from "
            f"{distance:.2f} on (Nemenyi)."
        )
    remarks += _on_what_is_missing(rows, methods)
    standings.sort(key=lambda one: one.rank)
    return Workloads(len(rows), tuple(standings), " ".join(remarks), tuple(panels))


def _on_what_is_missing(rows: Sequence[Mapping[str, Row]], methods: Sequence[str]) -> list[str]:
    """Words on runs that count as 0, and on methods that not all workloads have."""
    texts = []
    for method in methods:
        ended = [run for one in rows for run in _ended(one[method])]
        fell = sum(run.status != "done" for run in ended)
        if fell:
            texts.append(
                f"{rows[0][method].label}: {fell} of {len(ended)} runs diverged or failed, and "
                "count as a score of 0."
            )
    others = {row.method: row.label for one in rows for row in one.values()}
    lacking = [label for method, label in others.items() if method not in methods]
    if lacking:
        texts.append(f"Left out, since not all workloads have them: {', '.join(lacking)}.")
    return texts


def _ended(row: Row) -> list[Run]:
    return [run for run in row.runs if run.status in ("done", "diverged", "failed")]


def _scores(row: Row, key: str) -> list[float]:
    return [run.metrics.get(key, 0.0) if run.status == "done" else 0.0 for run in _ended(row)]


def _gains(row: Row, key: str) -> list[float]:
    """Differences to the baseline, pair by pair."""
    comparison = row.comparison
    if comparison is None:
        return []
    pairs = comparison.pairs
    return [
        *comparison.differences,
        *(-pair.reference.metrics.get(key, 0.0) for pair in pairs.only_method_diverged),
        *(pair.run.metrics.get(key, 0.0) for pair in pairs.only_baseline_diverged),
    ]


def _profile(times: Mapping[str, Sequence[float]], method: str) -> list[tuple[float, float]]:
    """The share of workloads by the factor, wherever it changes."""
    best = [min(row) for row in zip(*times.values(), strict=True)]
    ratios = [own / first for own, first in zip(times[method], best, strict=True) if own < math.inf]
    factors = sorted({1.0, *ratios})
    return list(zip(factors, performance_profile(times, factors)[method], strict=True))


def _time(row: Row) -> float:
    arrived = row.acceleration
    return math.inf if arrived is None or math.isnan(arrived.epochs) else arrived.epochs
