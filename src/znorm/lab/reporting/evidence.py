"""The table of each method against the baseline: differences, tests, sizes, times."""

from __future__ import annotations

import math
from dataclasses import dataclass

from znorm.lab.evidence.comparison import Comparison
from znorm.lab.metrics.score import Column
from znorm.lab.reporting.tables import Row, Table
from znorm.lab.stats import Interval, smallest_p
from znorm.lab.text import duration

__all__ = ["Evidence", "EvidenceLine", "evidence"]

TITLES = (
    "Last epoch",
    "Last tenth",
    "Best on validation",
    "p",
    "p, Holm",
    "Shown",
    "p, signs flipped",
    "Above it",
    "g",
    "Half there after",
    "Time",
)


@dataclass(frozen=True)
class EvidenceLine:
    """A method, its pairs of runs with the baseline, and a text for each of the titles."""

    label: str
    pairs: int
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Evidence:
    """The table; ``sequential``: its intervals and p hold at all looks at once."""

    titles: tuple[str, ...]
    lines: tuple[EvidenceLine, ...]
    sequential: bool


def evidence(table: Table) -> Evidence | None:
    """The table of evidence; None where no method is compared with the baseline."""
    rows = [row for row in table.rows if row.comparison is not None]
    if not rows:
        return None
    sequential = any(row.comparison.sequential for row in rows if row.comparison is not None)
    titles = ("Best epoch", *TITLES[1:]) if table.spec.best_epoch else TITLES
    return Evidence(titles, tuple(_line(table.columns[0], row) for row in rows), sequential)


def _line(headline: Column, row: Row) -> EvidenceLine:
    one = row.comparison
    assert one is not None
    differences = [
        difference(headline, comparison.interval) for comparison in row.comparisons.values()
    ]
    flipped = "–"
    if not math.isnan(one.sign_flip_p):
        flipped = f"{p_value(one.sign_flip_p)} ({smallest_p(len(one.differences)):.2g})"
    texts = (
        *differences,
        p_value(one.p),
        p_value(one.holm_p),
        _shown(one),
        flipped,
        "–" if math.isnan(one.improvement) else f"{one.improvement:.0%}",
        "–" if math.isnan(one.g) else f"{one.g:.2f}".replace("-", "−"),
        _half_there(row),
        "–" if math.isnan(one.ratio) else f"{one.ratio:.2f}",
    )
    return EvidenceLine(row.label, len(one.differences), texts)


def difference(headline: Column, interval: Interval | None) -> str:
    """A mean difference, and half its interval."""
    if interval is None:
        return "–"
    text = f"{'+' if interval.mean >= 0 else '−'}{headline.show(abs(interval.mean))}"
    return text if interval.half is None else f"{text} ± {headline.show(interval.half)}"


def p_value(value: float) -> str:
    """A p value with two digits, a dash where there is none."""
    return "–" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.2g}"


def _shown(comparison: Comparison) -> str:
    if math.isnan(comparison.holm_p) or comparison.holm_p > 0.05 or comparison.interval is None:
        return "no"
    return "ahead" if comparison.interval.mean > 0 else "behind"


def _half_there(row: Row) -> str:
    arrived = row.acceleration
    if arrived is None or not arrived.arrivals:
        return "–"
    count = f"{arrived.reached} of {len(arrived.arrivals)} ever"
    median = "never" if math.isinf(arrived.epochs) else f"{arrived.epochs:g} epochs"
    if arrived.interval is not None:
        ends = ["never" if math.isinf(end) else f"{end:g}" for end in arrived.interval]
        median += f" (95 %: {' to '.join(dict.fromkeys(ends))})"
    if math.isfinite(arrived.epochs) and math.isfinite(arrived.seconds):
        median += f", {duration(arrived.seconds)}"
    return f"{median}; {count}"
