"""The card: the answer to a comparison's question, how sure it is, and what it rests on."""

from __future__ import annotations

import math
from dataclasses import dataclass

from znorm.lab.evidence.comparison import Comparison
from znorm.lab.evidence.question import Question
from znorm.lab.evidence.tuning import Tuning, method_key
from znorm.lab.evidence.verdict import Decision, Verdict, verdict
from znorm.lab.methods import label as label_of
from znorm.lab.metrics.score import Column
from znorm.lab.reporting.evidence import p_value
from znorm.lab.reporting.tables import Row, Table
from znorm.lab.stats import detectable, smallest_p
from znorm.lab.text import duration
from znorm.transforms import TRANSFORMS

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
    pairs : int
        It rests on so many.
    is_open : bool
        Whether more seeds can decide it.
    """

    decision: Decision
    headline: str
    lines: tuple[Line, ...]
    pairs: int = 0
    is_open: bool = False

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
        _cost(row, comparison),
        _seeds(table, comparison, found, question.worth, show),
        _asked_before(question, show),
        _basis(table, comparison),
    ]
    headline = f"{name}: {found.reason}."
    return Card(
        found.decision,
        headline,
        tuple(line for line in lines if line is not None),
        len(comparison.differences),
        found.decision == "undecided" and found.is_open,
    )


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
    if count == 0:
        return None
    if count == 1:
        return Line(
            "How sure", "One pair has no interval and no test: seeds alone move nets by points."
        )
    if math.isnan(comparison.p):
        return Line("How sure", "Differences that are all the same have no interval and no test.")
    if comparison.sequential:
        text = (
            "Seeds were added until it was decided: the interval, and "
            f"p = {p_value(comparison.p)}, hold at every look at once, for normal differences."
        )
        return Line("How sure", text)
    signs = (
        f"p = {p_value(comparison.sign_flip_p)} by flipping signs, which are a matter of chance "
        "where methods are alike"
    )
    least = smallest_p(count)
    if least > 0.05:
        signs += f", and cannot be below {least:.2g} for {_pairs(count)}"
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
        texts.append(f"{name}: {show.of(one)}, {verdict(one, worth).decision}")
    return Line("Read otherwise", "; ".join(texts) + ".")


def _cost(row: Row, comparison: Comparison) -> Line | None:
    texts = []
    if not math.isnan(comparison.ratio):
        texts.append(f"{comparison.ratio:.2f} times the baseline's time a run")
    links = [name for link in row.runs[0].spec.transform for name in link]
    if all(name in TRANSFORMS for name in links):
        texts.append("no memory of its own: its transforms keep nothing between steps")
    text = "; ".join(texts)
    return Line("Cost", f"{text[0].upper()}{text[1:]}.") if text else None


def _seeds(
    table: Table, comparison: Comparison, found: Verdict, worth: float, show: _Unit
) -> Line | None:
    count, spread = len(comparison.differences), comparison.spread
    if math.isnan(spread):
        if found.decision != "undecided":
            return None
        return Line("More seeds", "Two pairs or more have an interval; five or more say something.")
    worth_text = show.round(worth)
    if found.decision != "undecided":
        if spread == 0:
            return None
        least = detectable(count, spread)
        text = (
            f"With {_pairs(count)} a difference of {show(least)}{show.name} is found in four of "
            f"five comparisons; {worth_text} would be worth adopting."
        )
        return Line("What it can tell", text)
    if found.more_seeds is None:
        if not found.is_open:
            text = "More of them do not decide this: by the rule such a method is not adopted."
            if spread == 0:
                text = "That so many pairs agree is no chance, and more of them will: look at why."
            return Line("More seeds", text)
        if spread == 0:
            return Line("More seeds", "Further pairs may differ.")
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


def _asked_before(question: Question, show: _Unit) -> Line | None:
    """A word on questions that were asked of the folder before this one."""
    if not question.earlier:
        return None
    before = "; ".join(
        f"of {label_of(method)}, a gain of {show.round(worth)}"
        for method, worth in question.earlier
    )
    text = f"Another question was asked here before: {before}. A later one counts less."
    return Line("The question", text)


def _own_settings(tuning: Tuning, comparison: Comparison) -> str:
    specs = {
        method_key(run.spec): run.spec
        for pair in comparison.pairs.made
        for run in (pair.run, pair.reference)
    }
    own = [f"{label_of(spec.method)} {tuning.chosen[key]}" for key, spec in sorted(specs.items())]
    trials = " or ".join(map(str, sorted({len(tuning.drawn[key]) for key in specs})))
    return f"Each method has the best of {trials} trials on validation data: {_listed(own)}."


def _basis(table: Table, comparison: Comparison) -> Line | None:
    pairs, spec = comparison.pairs, table.spec
    names = {"data": "images", "initial_weights": "initial weights", "batches": "augmented batches"}
    known = [name for key, name in names.items() if all(key in one.verified for one in pairs.made)]
    unknown = [name for name in names.values() if name not in known]
    epochs = f"up to {spec.epochs}" if spec.patience else f"{spec.epochs}"
    text = f"{_pairs(len(pairs.made))}; {spec.task}, {spec.model}, {epochs} epochs."
    if table.tuning is not None and pairs.made:
        text += f" {_own_settings(table.tuning, comparison)}"
    if pairs.made and known:
        text += f" By their hashes the two of a pair have the same {_listed(known)}."
    if pairs.made and unknown:
        text += f" Of {_listed(unknown)} no hash was kept: that they are the same is not verified."
    if pairs.left_out:
        text += f" Left out: {'; '.join(pairs.left_out)}."
    return Line("It rests on", text)
