"""Intervals that may be looked at after every pair: for seeds that are added until it is decided.

A t interval that is looked at again and again, and believed once it leaves 0, is wrong far more
often than its level says. These hold at all looks together, whatever rule stops them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from znorm.lab.stats.intervals import Interval

__all__ = [
    "bayes_factor",
    "confidence_sequence",
    "half_width_at_any_time",
    "p_at_any_time",
]

# The variance of the difference, in variances of differences, that the mixture expects. Larger ones
# can decide after fewer pairs where methods differ by much, and take more of them where they do by
# little: at 4 the first possible decision is that of four pairs.
_EXPECTED = 4.0


def bayes_factor(pairs: int, t: float, expected: float = _EXPECTED) -> float:
    """The evidence for a difference from a t statistic: at least 1/alpha with chance alpha at most.

    The ratio of likelihoods of t where the difference, in standard deviations, is normal with
    variance ``expected``, to where it is 0. Under no difference it is a martingale, whose chance of
    ever reaching 1/alpha is at most alpha (Ville's inequality).

    Parameters
    ----------
    pairs : int
    t : float
        Of the paired t test.
    expected : float

    References
    ----------
    Gönen, Johnson, Lu and Westfall, "The Bayesian two-sample t test", 2005; Lai, "On confidence
    sequences", 1976; Wang and Ramdas, "Anytime-valid t-tests and confidence sequences for Gaussian
    means with unknown variance", 2024.

    Examples
    --------
    >>> bayes_factor(1, 3.0), round(bayes_factor(8, 3.0), 2)
    (1.0, 4.08)
    """
    if pairs < 2:
        return 1.0
    free, spread = pairs - 1, 1 + pairs * expected
    square = t * t
    logarithm = -0.5 * math.log(spread) + (free + 1) / 2 * (
        math.log1p(square / free) - math.log1p(square / (free * spread))
    )
    return math.exp(min(logarithm, 700.0))


def p_at_any_time(differences: Sequence[float], expected: float = _EXPECTED) -> float:
    """A p that may be looked at after every pair: ever below alpha with chance alpha at most.

    The inverse of the Bayes factor. It is below 0.05 where `confidence_sequence` excludes 0.

    Parameters
    ----------
    differences : sequence of float
        All so far.
    expected : float

    Returns
    -------
    float
        1 where they say nothing; nan for fewer than two.

    Examples
    --------
    >>> round(p_at_any_time([1.0, 2.0, 3.0, 2.0, 1.0]), 3)
    0.07
    """
    n = len(differences)
    if n < 2:
        return math.nan
    mean, spread = statistics.fmean(differences), statistics.stdev(differences)
    if spread == 0:
        return float(mean == 0)
    return min(1.0, 1 / bayes_factor(n, mean * math.sqrt(n) / spread, expected))


def half_width_at_any_time(
    pairs: int, spread: float, level: float = 0.95, expected: float = _EXPECTED
) -> float:
    """Half the width of :func:`confidence_sequence` for differences of this spread.

    Parameters
    ----------
    pairs : int
    spread : float
        The standard deviation of the differences.
    level, expected : float

    Returns
    -------
    float
        inf where so few pairs cannot exclude anything.

    Examples
    --------
    >>> half_width_at_any_time(3, 1.0), round(half_width_at_any_time(8, 1.0), 3)
    (inf, 1.486)
    """
    if pairs < 2:
        return math.inf
    free, width = pairs - 1, 1 + pairs * expected
    # The t at which the Bayes factor is 1 / (1 - level).
    root = math.exp(2 / pairs * (math.log(1 / (1 - level)) + 0.5 * math.log(width)))
    if root >= width:
        return math.inf
    square = free * (root - 1) / (1 - root / width)
    return math.sqrt(square / pairs) * spread


def confidence_sequence(
    differences: Sequence[float], level: float = 0.95, expected: float = _EXPECTED
) -> Interval:
    """An interval for the mean difference, of which all looks hold at once with this chance.

    For normal differences of unknown spread.

    Parameters
    ----------
    differences : sequence of float
        All so far; at least one.
    level, expected : float

    Raises
    ------
    ValueError
        If there are none.

    Examples
    --------
    >>> confidence_sequence([1.0, 2.0, 3.0, 2.0, 1.0])  # doctest: +ELLIPSIS
    Interval(mean=1.8, half=2.00...)
    """
    if not differences:
        raise ValueError("confidence_sequence: no differences")
    mean = statistics.fmean(differences)
    if len(differences) == 1:
        return Interval(mean, None)
    half = half_width_at_any_time(len(differences), statistics.stdev(differences), level, expected)
    return Interval(mean, None if math.isinf(half) else half)
