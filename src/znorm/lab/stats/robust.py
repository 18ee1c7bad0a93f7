"""Means that one run cannot carry away, and intervals over cases within runs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from znorm.lab.stats.intervals import Interval

__all__ = ["interquartile_mean", "nested_bootstrap"]


def interquartile_mean(values: Sequence[float]) -> float:
    """The mean of what is left once the lowest and the highest quarter are taken away.

    Of each quarter whole values are taken away, as scipy's ``trim_mean`` does: of three none is.

    Parameters
    ----------
    values : sequence of float

    Returns
    -------
    float
        nan for none.

    Examples
    --------
    >>> interquartile_mean([0.0, 1.0, 2.0, 99.0])
    1.5
    """
    if not values:
        return math.nan
    ordered = sorted(values)
    cut = len(ordered) // 4
    return float(np.mean(ordered[cut : len(ordered) - cut]))


def nested_bootstrap(
    scores: Sequence[Sequence[float]], level: float = 0.95, draws: int = 10_000, seed: int = 0
) -> tuple[Interval, tuple[float, float]]:
    """An interval for a mean over cases, such as patients, of several seeds.

    Seeds are drawn with replacement, and cases too, the same ones for all seeds: a patient who is
    difficult is so in every run. Over few seeds it is too narrow: at three a percentile interval of
    95 % holds the mean in four of five samples; it is for what cases add.

    Parameters
    ----------
    scores : sequence of sequences of float
        Of each seed the score of each case, in one order; nan where a case has none.
    level : float
    draws : int
    seed : int
        Of the draws: the same call gives the same interval.

    Returns
    -------
    Interval
        The mean, with half the distance of the ends.
    tuple of float
        The ends, which need not lie evenly about the mean.

    Raises
    ------
    ValueError
        If there are no scores, or seeds have different numbers of cases.

    Examples
    --------
    >>> interval, (low, high) = nested_bootstrap([[0.5, 0.7, 0.9], [0.4, 0.8, 0.9]])
    >>> round(interval.mean, 3), low < 0.7 < high
    (0.7, True)
    """
    if not scores or not len(scores[0]) or len({len(row) for row in scores}) > 1:
        raise ValueError("nested_bootstrap: expected the same cases, one or more, of each seed")
    table = np.asarray(scores, dtype=np.float64)
    seeds, cases = table.shape
    random = np.random.default_rng(seed)
    means = np.empty(draws)
    for number in range(draws):
        rows = table[random.integers(0, seeds, seeds)]
        means[number] = np.nanmean(rows[:, random.integers(0, cases, cases)])
    low, high = np.nanquantile(means, [(1 - level) / 2, (1 + level) / 2])
    mean = float(np.nanmean(table))
    return Interval(mean, float(high - low) / 2), (float(low), float(high))
