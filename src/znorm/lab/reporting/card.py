"""The card: the answer to a comparison's question, how sure it is, and what it rests on."""

from __future__ import annotations

import math
from dataclasses import dataclass

from znorm.lab.evidence.comparison import Comparison
from znorm.lab.evidence.tuning import Tuning
from znorm.lab.evidence.verdict import Decision, Verdict, decide, verdict
from znorm.lab.methods import label as label_of
from znorm.lab.metrics.score import Column
from znorm.lab.reporting.evidence import p_value
from znorm.lab.reporting.tables import Row, Table
from znorm.lab.stats import detectable, smallest_p
from znorm.lab.text import duration

__all__ = ["Card", "Line", "card_of"]


@dataclass(frozen=True)
class Line:
    """A line of the card: what it is about, and the text."""

    title: str
    text: str


@dataclass(frozen=True)
class Card:
    """The answer.

    Parameters
    ----------
    decision : "adopt", "do not adopt" or "undecided"
    headline : str
        The decision with its reason, in a sentence.
    lines : tuple of Line
    """

    decision: Decision
    headline: str
    lines: tuple[Line, ...]

    @property
    def text(self) -> str:
        """The headline and the first line, as a terminal shows them."""
        return " ".join([self.headline, *(line.text for line in self.lines[:1])])


def card_of(table: Table) -> Card | None:
    """The card of a table; None where nothing is asked, or no method has a run beside the baseline.

    Of several configurations of one method the first one stands for it.
    """
    question, row = table.question, table.asked
    if question is None or row is None:
        return None
    comparison = row.comparison
    if comparison is None:
        headline = f"Undecided: {row.label} and the baseline were trained on different images."
        return Card("undecided", headline, ())
    found = verdict(comparison, question.worth)
    name = f"{found.decision[0].upper()}{found.decision[1:]}"
    if found.decision != "undecided":
        name += f" {row.label}"
    show = _Unit(table.columns[0])
    lines = [
        _effect(comparison, show),
        Line("What it did", f"{row.remark[0].upper()}{row.remark[1:]}.") if row.remark else None,
        _certainty(comparison),
        _size(comparison, row),
        _endings(row, question.worth, show),
        _cost(comparison),
        _seeds(table, comparison, found, question.worth, show),
        _basis(table, comparison),
    ]
    headline = f"{name}: {found.reason}."
    return Card(found.decision, headline, tuple(line for line in lines if line is not None))


@dataclass(frozen=True)
class _Unit:
    """Differences in the unit of a column."""

    column: Column

    def __call__(self, value: float, *, sign: bool = False) -> str:
        if math.isinf(value):
            return "∞" if value > 0 else "−∞"
        text = self.column.show(abs(value))
        rounded = float(text) == 0
        return ("−" if value < 0 and not rounded else "+" if sign and not rounded else "") + text

    @property
    def name(self) -> str:
        return " points" if self.column.scale == 100 else ""

    def round(self, value: float) -> str:
        """A number that somebody has chosen."""
        chosen = f"{value * self.column.scale:g}"
        return f"{chosen} point" if self.name and chosen == "1" else f"{chosen}{self.name}"

    def of(self, comparison: Comparison) -> str:
        """A mean difference with its interval."""
        interval = comparison.interval
        if interval is None:
            return "no pair"
        mean = f"{self(interval.mean, sign=True)}{self.name}"
        if interval.half is None:
            return f"{mean}, without an interval"
        return f"{mean} (95 %: {self(interval.low, sign=True)} to {self(interval.high, sign=True)})"


def _pairs(count: int) -> str:
    return f"{count} pair{'' if count == 1 else 's'} of runs"


def _effect(comparison: Comparison, show: _Unit) -> Line | None:
    title, count = show.column.title.replace(", %", ""), len(comparison.differences)
    text = f"{title} against the baseline: {show.of(comparison)}, {_pairs(count)}."
    return Line("Effect", text)


def _certainty(comparison: Comparison) -> Line | None:
    count = len(comparison.differences)
    if count < 2:
        return Line(
            "How sure", "One pair has no interval and no test: seeds alone move nets by points."
        )
    signs = (
        f"p = {p_value(comparison.sign_flip_p)} by flipping signs, which takes nothing for granted"
    )
    least = smallest_p(count)
    if least > 0.05:
        signs += f" and cannot be below {least:.2g} for {_pairs(count)}"
    if comparison.sequential:
        text = (
            "Seeds were added until it was decided, and the interval is one that holds at every "
            f"look at once; {signs}."
        )
        return Line("How sure", text)
    text = f"p = {p_value(comparison.p)} by a t test, which takes differences for normal; {signs}."
    return Line("How sure", text)


def _size(comparison: Comparison, row: Row) -> Line | None:
    if math.isnan(comparison.improvement):
        return None
    share = f"{comparison.improvement:.0%}"
    text = f"A run of {row.label} is above one of the baseline in {share} of cases"
    if not math.isnan(comparison.g):
        text += f"; Hedges' g of the differences is {comparison.g:.2f}".replace("-", "−")
    return Line("Size", f"{text}.")


def _endings(row: Row, worth: float, show: _Unit) -> Line | None:
    others = [
        (name, one)
        for name, one in row.comparisons.items()
        if one is not row.comparison and one.interval is not None
    ]
    if not others or row.comparison is None:
        return None
    texts = []
    for name, one in others:
        assert one.interval is not None
        texts.append(f"{name}: {show.of(one)}, {decide(one.interval, worth)}")
    return Line("Read otherwise", "; ".join(texts) + ".")


def _cost(comparison: Comparison) -> Line | None:
    memory = "no memory of its own: transforms keep nothing between steps"
    if math.isnan(comparison.ratio):
        return Line("Cost", f"{memory[0].upper()}{memory[1:]}.")
    return Line("Cost", f"{comparison.ratio:.2f} times the baseline's time a run; {memory}.")


def _seeds(
    table: Table, comparison: Comparison, found: Verdict, worth: float, show: _Unit
) -> Line | None:
    count, spread = len(comparison.differences), comparison.spread
    if math.isnan(spread):
        return Line("More seeds", "Two pairs or more have an interval; five or more say something.")
    worth_text = show.round(worth)
    if found.decision != "undecided":
        least = detectable(count, spread)
        text = (
            f"With {_pairs(count)} a difference of {show(least)}{show.name} is found in four of "
            f"five comparisons; {worth_text} would be worth adopting."
        )
        return Line("What it can tell", text)
    if found.more_seeds is None:
        if comparison.pairs.diverged or spread == 0:
            return None
        text = f"More than 1,000 pairs to tell a gain of {worth_text} from none, at this spread."
        return Line("More seeds", text)
    seconds = _seconds_a_pair(table, comparison)
    cost = f", about {duration(found.more_seeds * seconds)}" if seconds else ""
    plural = "" if found.more_seeds == 1 else "s"
    text = (
        f"Undecided between no gain and one of {worth_text}: {found.more_seeds} more seed{plural}"
        f"{cost}, decide it if the difference and its spread stay what they are."
    )
    return Line("More seeds", text)


def _seconds_a_pair(table: Table, comparison: Comparison) -> float:
    pairs = comparison.pairs.made
    total = sum(
        (run.result or {})["seconds"] for pair in pairs for run in (pair.run, pair.reference)
    )
    return total / len(pairs) if pairs else 0.0


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _own_settings(tuning: Tuning, comparison: Comparison) -> str:
    methods = {
        run.spec.method for pair in comparison.pairs.made for run in (pair.run, pair.reference)
    }
    own = [f"{label_of(method)} {tuning.chosen[method]}" for method in sorted(methods)]
    counts = {len(tuning.drawn[method]) for method in methods}
    trials = " or ".join(map(str, sorted(counts)))
    return f"Each method has the best of {trials} trials on validation data: {_listed(own)}."


def _basis(table: Table, comparison: Comparison) -> Line | None:
    pairs, spec = comparison.pairs, table.spec
    names = {"data": "images", "initial_weights": "initial weights", "batches": "augmented batches"}
    known = [name for key, name in names.items() if all(key in one.verified for one in pairs.made)]
    unknown = [name for name in names.values() if name not in known]
    text = f"{_pairs(len(pairs.made))}; {spec.task}, {spec.model}, {spec.epochs} epochs."
    if table.tuning is not None:
        text += f" {_own_settings(table.tuning, comparison)}"
    if pairs.made and known:
        text += f" By their hashes the two of a pair have the same {_listed(known)}."
    if pairs.made and unknown:
        text += f" Of {_listed(unknown)} no hash was kept: that they are the same is not verified."
    left = [f"seed {seed}: {reason}" for seed, reason in pairs.refused]
    for seeds, what in (
        (pairs.diverged, "diverged, the baseline did not"),
        (pairs.reference_diverged, "did not diverge, the baseline did"),
        (pairs.missing, "not there, not finished or failed, of one of the two"),
    ):
        if seeds:
            left.append(f"seed {', '.join(map(str, seeds))}: {what}")
    if left:
        text += f" Left out: {'; '.join(left)}."
    return Line("It rests on", text)
