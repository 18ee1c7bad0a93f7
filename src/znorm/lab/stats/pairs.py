"""Differences of pairs of runs, which share all but the method: tests, effect sizes.

All of these take differences ``score - score of the baseline``, one a seed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np
from scipy.special import gammaln, stdtr

__all__ = ["hedges_g", "probability_of_improvement", "sign_flip_test", "smallest_p", "t_test"]

# Pairs up to which every choice of signs is counted: 2^20 sums.
_COUNTED = 20
_DRAWN = 200_000
_AT_ONCE = 20_000


def t_test(differences: Sequence[float]) -> float:
    """The two-sided p of Student's t test that the mean difference is 0.

    Exact for normal differences; with few seeds that cannot be seen in them.

    Parameters
    ----------
    differences : sequence of float

    Returns
    -------
    float
        nan for fewer than two; 0 or 1 where they are all equal.

    Examples
    --------
    >>> round(t_test([1.0, 2.0, 3.0]), 4)
    0.0742
    """
    n = len(differences)
    if n < 2:
        return math.nan
    mean, spread = statistics.fmean(differences), statistics.stdev(differences)
    if spread == 0:
        return float(mean == 0)
    return float(2 * stdtr(n - 1, -abs(mean) * math.sqrt(n) / spread))


def sign_flip_test(differences: Sequence[float]) -> float:
    """The two-sided p that signs are a matter of chance, from all ways to flip them.

    Exact for differences that are symmetric about 0 where there is none, whatever their
    distribution: "Fisher's randomization test". Above 20 pairs 200,000 random choices stand for all
    of them, the same ones on every call.

    Parameters
    ----------
    differences : sequence of float

    Returns
    -------
    float
        nan for none.

    Examples
    --------
    >>> sign_flip_test([1.0, 2.0, 3.0])
    0.25
    """
    n = len(differences)
    if n == 0:
        return math.nan
    values = np.asarray(differences, dtype=np.float64)
    # What only rounding tells apart is equal.
    bound = abs(values.sum()) - 1e-9 * np.abs(values).sum()
    if n <= _COUNTED:
        sums = np.zeros(1)
        for value in values:
            sums = np.concatenate([sums + value, sums - value])
        return float(np.mean(np.abs(sums) >= bound))
    random, as_far = np.random.default_rng(0), 0
    for _ in range(_DRAWN // _AT_ONCE):
        signs = random.integers(0, 2, (_AT_ONCE, n), dtype=np.int8)
        as_far += int((np.abs(2 * (signs @ values) - values.sum()) >= bound).sum())
    return (as_far + 1) / (_DRAWN + 1)


def smallest_p(pairs: int) -> float:
    """The smallest p that :func:`sign_flip_test` can give.

    Examples
    --------
    >>> [smallest_p(n) for n in (3, 5, 6)]
    [0.25, 0.0625, 0.03125]
    """
    return min(1.0, 2.0 ** (1 - pairs))


def hedges_g(differences: Sequence[float]) -> float:
    """The mean difference in standard deviations of the differences, without its bias.

    Cohen's d of pairs (d_z) times Hedges' correction, which matters with few seeds: 0.56 at three.
    Of two there is no such estimate.

    Parameters
    ----------
    differences : sequence of float

    Returns
    -------
    float
        nan for fewer than three, or where they are all equal.

    References
    ----------
    Hedges, "Distribution theory for Glass's estimator of effect size and related estimators", 1981.

    Examples
    --------
    >>> round(hedges_g([1.0, 2.0, 3.0]), 4)
    1.1284
    """
    n = len(differences)
    if n < 3 or (spread := statistics.stdev(differences)) == 0:
        return math.nan
    free = n - 1
    correction = math.exp(gammaln(free / 2) - gammaln((free - 1) / 2))
    return statistics.fmean(differences) / spread * correction * math.sqrt(2 / free)


def probability_of_improvement(scores: Sequence[float], others: Sequence[float]) -> float:
    """The chance that a run of the one scores above a run of the other; a tie counts half.

    Parameters
    ----------
    scores, others : sequence of float
        Of a method and of the baseline; they need not be paired.

    Returns
    -------
    float
        From 0 to 1; nan where one of them is empty.

    References
    ----------
    Agarwal et al., "Deep reinforcement learning at the edge of the statistical precipice", 2021.

    Examples
    --------
    >>> probability_of_improvement([2.0, 3.0], [1.0, 2.0])
    0.875
    """
    if not scores or not others:
        return math.nan
    above, tied = (compare.outer(scores, others) for compare in (np.greater, np.equal))
    return float(np.mean(above + 0.5 * tied))
