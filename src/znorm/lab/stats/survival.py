"""Times until something is reached, of runs some of which never do."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import bdtr

__all__ = ["median_interval", "median_time"]


def median_time(times: Sequence[float], reached: Sequence[bool]) -> float:
    """The time by which half of the runs are there, by Kaplan and Meier's estimate.

    A run that has not arrived counts until its end: to leave it out would make a method that
    arrives rarely look fast.

    Parameters
    ----------
    times : sequence of float
        When each run arrived, or how long it was watched.
    reached : sequence of bool
        Whether it arrived.

    Returns
    -------
    float
        inf where fewer than half are there at the end; nan for no runs.

    References
    ----------
    Kaplan and Meier, "Nonparametric estimation from incomplete observations", 1958.

    Examples
    --------
    >>> median_time([3, 5, 10, 10], [True, True, False, False])
    5.0
    >>> median_time([3, 10, 10, 10], [True, False, False, False])
    inf
    """
    if not times:
        return math.nan
    waiting = np.asarray(times, dtype=np.float64)
    arrived = np.asarray(reached, dtype=bool)
    left = 1.0
    for time in np.unique(waiting[arrived]):
        left *= 1 - np.sum(arrived & (waiting == time)) / np.sum(waiting >= time)
        if left <= 0.5 + 1e-12:
            return float(time)
    return math.inf


def median_interval(
    times: Sequence[float], reached: Sequence[bool], level: float = 0.95
) -> tuple[float, float] | None:
    """An interval for the median time, from the ordered times alone.

    Between the j-th and the j-th last of the times the median lies unless fewer than j of them are
    on one side of it, which is a matter of coins: nothing is taken for granted. It is for runs that
    were watched equally long, so that one which has not arrived is later than all that have.

    Parameters
    ----------
    times, reached : sequence
        As :func:`median_time` takes them.
    level : float
        At least so often it holds the median.

    Returns
    -------
    tuple of float or None
        inf for an end that no run had reached; None where the runs are too few, as five are at
        95 %.

    References
    ----------
    Brookmeyer and Crowley, "A confidence interval for the median survival time", 1982, for times
    that are censored at one moment.

    Examples
    --------
    >>> median_interval([3, 4, 5, 6, 7, 9], [True] * 6)
    (3.0, 9.0)
    >>> median_interval([3, 4, 5, 6, 10, 10], [True] * 4 + [False] * 2)
    (3.0, inf)
    >>> median_interval([3, 4, 5, 6, 7], [True] * 5)
    """
    count = len(times)
    place = 0  # of the ends, from 1; 0 where there is none
    while place + 1 <= (count + 1) // 2 and 2 * bdtr(place, count, 0.5) <= 1 - level:
        place += 1
    if place == 0:
        return None
    ordered = sorted(
        float(time) if arrived else math.inf for time, arrived in zip(times, reached, strict=True)
    )
    return ordered[place - 1], ordered[count - place]
