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
    p_at_any_time,
    probability_of_improvement,
    sign_flip_test,
    t_interval,
    t_test,
)

__all__ = ["Comparison", "compare_pairs", "hold_together"]

# Differences of shares that are equal, such as 12 of 380 images more, differ by rounding.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Comparison:
    """A method against the baseline in one score.

    Parameters
    ----------
    pairs : Pairs
    differences : tuple of float
        Of each pair, in the unit of the score.
    interval : Interval or None
        Of the mean difference, at 95 %; None without pairs. Of differences that are all the same it
        has no width, unless the nets are the same, too.
    sequential : bool
        Whether the interval holds at all looks at once, as it must where seeds were added until it
        was decided.
    p, sign_flip_p : float
        Of the t test, or where seeds were added of one that holds at all looks at once; of the
        sign-flip test, which is for one look. nan where they say nothing.
    holm_p : float
        p among all methods of the table.
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
    alike = len(differences) > 1 and max(differences) - min(differences) <= _ROUNDING
    if alike:
        differences = (differences[0],) * len(differences)
    p = sign_flip_p = math.nan
    interval = None
    if alike and not pairs.same_nets:
        # Scores of a few hundred images have few values: pairs can agree by chance, and nets that
        # have learned nothing score what chance does.
        interval = Interval(differences[0], None)
    elif differences:
        interval = (confidence_sequence if sequential else t_interval)(differences)
        p = (p_at_any_time if sequential else t_test)(differences)
        sign_flip_p = math.nan if sequential else sign_flip_test(differences)
    # Every run that ended, of a pair or not: one that diverged is below all that did not.
    fell, others_fell, both = (
        pairs.only_method_diverged,
        pairs.only_baseline_diverged,
        pairs.both_diverged,
    )
    mine += [ending(pair.run, key) for pair in others_fell] + [-math.inf] * len(fell + both)
    theirs += [ending(pair.reference, key) for pair in fell]
    theirs += [-math.inf] * len(others_fell + both)
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
        sign_flip_p,
        p,
        hedges_g(differences),
        probability_of_improvement(
            [score for score in mine if not math.isnan(score)],
            [score for score in theirs if not math.isnan(score)],
        ),
        statistics.median(times) if times else math.nan,
    )


def hold_together(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons of one table, with p that bound the chance of any false alarm in it."""
    adjusted = holm([one.p for one in comparisons])
    return [replace(one, holm_p=p) for one, p in zip(comparisons, adjusted, strict=True)]
