"""Times until something is reached, of runs some of which never do."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

__all__ = ["median_time"]


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
