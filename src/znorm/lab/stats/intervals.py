"""Intervals for a mean over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# Not scipy.stats, whose import would be a quarter of the command line's start.
from scipy.special import stdtrit

__all__ = ["Interval", "t_interval"]


@dataclass(frozen=True)
class Interval:
    """A mean, and half the width of its interval; None where there is just one value."""

    mean: float
    half: float | None


def t_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """The mean with its t interval.

    The bootstrap is not used across seeds: over three values its nominal 95 % interval covers the
    mean in 79 % of cases, the t interval in 95 %.

    Parameters
    ----------
    values : sequence of float
        One a seed.
    level : float
        The coverage.

    Raises
    ------
    ValueError
        If there are no values.

    Examples
    --------
    >>> t_interval([1.0, 2.0, 3.0])  # doctest: +ELLIPSIS
    Interval(mean=2.0, half=2.484...)
    """
    if not values:
        raise ValueError("t_interval: no values")
    mean = statistics.fmean(values)
    n = len(values)
    if n == 1:
        return Interval(mean, None)
    spread = statistics.stdev(values) / math.sqrt(n)
    return Interval(mean, float(stdtrit(n - 1, (1 + level) / 2)) * spread)
