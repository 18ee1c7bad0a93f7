"""Adopt, do not adopt, or undecided: a rule that was fixed before the runs, and its reasons."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from znorm.lab.evidence.comparison import Comparison
from znorm.lab.stats import Interval, half_width, half_width_at_any_time

__all__ = ["Decision", "Verdict", "decide", "verdict"]

Decision = Literal["adopt", "do not adopt", "undecided"]

# Seeds beyond which nobody waits for a decision.
MOST_SEEDS = 1000
# Pairs that do not all tie by chance: of two with a few hundred test images one in twenty does.
_NO_CHANCE = 3
# Pairs that have agreed by chance so often will go on to.
_OFTEN = 5


@dataclass(frozen=True)
class Verdict:
    """The answer to a question.

    Parameters
    ----------
    decision : "adopt", "do not adopt" or "undecided"
    reason : str
        In a few words.
    more_seeds : int or None
        About so many more pairs decide it, if the difference and its spread stay what they are; 0
        where it is decided, None where nothing can be said, or where it would take more than 1,000.
    is_open : bool
        Whether more seeds can decide what is undecided.
    """

    decision: Decision
    reason: str
    more_seeds: int | None
    is_open: bool = True


def decide(interval: Interval, worth: float) -> Decision:
    """The decision of an interval for the mean difference.

    Adopt where all of it is above 0 and a gain of ``worth`` is within it or below it; do not adopt
    where no such gain is: the method is worse, alike or better by too little.

    Examples
    --------
    >>> decide(Interval(0.05, 0.02), 0.01), decide(Interval(-0.04, 0.03), 0.01)
    ('adopt', 'do not adopt')
    >>> decide(Interval(0.0, 0.005), 0.01), decide(Interval(0.0, 0.02), 0.01)
    ('do not adopt', 'undecided')
    """
    if interval.high < worth:
        return "do not adopt"
    return "adopt" if interval.low > 0 else "undecided"


def verdict(comparison: Comparison, worth: float) -> Verdict:
    """The verdict on a method.

    Where one of its runs diverged and the baseline's of that seed did not, it is not adopted
    whatever the others scored.
    """
    pairs, interval = comparison.pairs, comparison.interval
    fell = len(pairs.only_method_diverged)
    if fell and fell == pairs.ended and not (pairs.failed or pairs.waiting or pairs.refused):
        return Verdict("do not adopt", "every run of it diverged, and the baseline's did not", 0)
    if interval is None:
        return Verdict("undecided", "there is no pair of finished runs", None)
    if pairs.same_nets:
        return Verdict("do not adopt", "its nets are the baseline's, to the bit", 0)
    count = len(comparison.differences)
    if comparison.spread == 0 and interval.mean == 0 and count >= _NO_CHANCE:
        return Verdict("do not adopt", "it makes no difference in any pair", 0)
    if comparison.spread == 0:
        text = "all pairs have the same difference, of which no interval can be made"
        return Verdict("undecided", text, None, count < _OFTEN)
    decision = decide(interval, worth)
    if decision == "adopt" and fell:
        text = f"it is ahead where it finished, and diverged in {fell} of {pairs.ended} seeds"
        return Verdict("undecided", text, None, is_open=False)
    if decision == "adopt":
        return Verdict(decision, "it is ahead of the baseline", 0)
    if decision == "do not adopt":
        if interval.high < 0:
            text = "it is behind the baseline"
        elif interval.low > 0:
            text = "it is ahead by less than is worth it"
        elif interval.low > -worth:
            text = "it makes no difference that matters"
        else:
            text = "it gains nothing that matters"
        return Verdict(decision, text, 0)
    if count < 2:
        return Verdict("undecided", "one pair has no interval", None)
    return Verdict("undecided", "the interval holds both 0 and a gain", _more(comparison, worth))


def _more(comparison: Comparison, worth: float) -> int | None:
    """The number of further pairs that decide, if mean and spread stay what they are."""
    assert comparison.interval is not None
    now, mean = len(comparison.differences), comparison.interval.mean
    width: Callable[[int, float], float] = (
        half_width_at_any_time if comparison.sequential else half_width
    )
    # Decided once an end passes 0, or the other one falls below the gain.
    needed = max(mean, worth - mean)
    spread = comparison.spread
    low, high = now, now + 1
    while high <= MOST_SEEDS and not width(high, spread) < needed:
        low, high = high, 2 * high
    if math.isnan(spread) or high > 2 * MOST_SEEDS:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if width(middle, spread) < needed else (middle, high)
    return high - now if high <= MOST_SEEDS else None
