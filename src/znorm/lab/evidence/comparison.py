"""One method against the baseline: differences of pairs, and what they say."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from znorm.lab.evidence.endings import Ending, last_epoch
from znorm.lab.evidence.pairs import Pairs
from znorm.lab.stats import (
    Interval,
    confidence_sequence,
    hedges_g,
    holm,
    probability_of_improvement,
    sign_flip_test,
    t_interval,
    t_test,
)

__all__ = ["Comparison", "compare_pairs", "hold_together"]


@dataclass(frozen=True)
class Comparison:
    """A method against the baseline in one score.

    Parameters
    ----------
    pairs : Pairs
    differences : tuple of float
        Of each pair, in the unit of the score.
    interval : Interval or None
        Of the mean difference, at 95 %; None without pairs.
    sequential : bool
        Whether the interval holds at all looks at once, as it must where seeds were added until it
        was decided.
    p, sign_flip_p : float
        Of the t test and of the sign-flip test; nan where they say nothing.
    holm_p : float
        p of the t test among all methods of the table.
    g : float
        Hedges' g of the differences.
    improvement : float
        The chance that a run of the method is above one of the baseline; one that diverged is below
        all that did not.
    ratio : float
        Of the runs' times, the median over pairs; nan where they say nothing.
    """

    pairs: Pairs
    differences: tuple[float, ...]
    interval: Interval | None
    sequential: bool
    p: float
    sign_flip_p: float
    holm_p: float
    g: float
    improvement: float
    ratio: float

    @property
    def spread(self) -> float:
        """The standard deviation of the differences; nan for fewer than two."""
        return statistics.stdev(self.differences) if len(self.differences) > 1 else math.nan


def compare_pairs(
    pairs: Pairs, key: str, ending: Ending = last_epoch, *, sequential: bool = False
) -> Comparison:
    """A comparison in the score ``key``; ``holm_p`` is that of a table of this one alone.

    Pairs of which one has no such score, or a nan, count for nothing.
    """
    scored = [(pair, ending(pair.run, key), ending(pair.reference, key)) for pair in pairs.made]
    scored = [one for one in scored if math.isfinite(one[1] - one[2])]
    made = [pair for pair, _, _ in scored]
    mine = [own for _, own, _ in scored]
    theirs = [other for _, _, other in scored]
    differences = tuple(one - other for one, other in zip(mine, theirs, strict=True))
    p = t_test(differences)
    interval = None
    if differences:
        interval = (confidence_sequence if sequential else t_interval)(differences)
    fell = [-math.inf] * len(pairs.diverged)
    others_fell = [-math.inf] * len(pairs.reference_diverged)
    times = [
        (pair.run.result or {})["seconds"] / seconds
        for pair in made
        if (seconds := (pair.reference.result or {})["seconds"]) > 0
    ]
    return Comparison(
        pairs,
        differences,
        interval,
        sequential,
        p,
        sign_flip_test(differences),
        p,
        hedges_g(differences),
        probability_of_improvement(mine + fell, theirs + others_fell),
        statistics.median(times) if times else math.nan,
    )


def hold_together(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons of one table, with p that bound the chance of any false alarm in it."""
    adjusted = holm([one.p for one in comparisons])
    return [replace(one, holm_p=p) for one, p in zip(comparisons, adjusted, strict=True)]
