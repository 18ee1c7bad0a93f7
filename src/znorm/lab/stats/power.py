"""The number of seeds that a question takes, before they are paid for.

Of pairs of runs whose differences are normal with a known spread; it comes from runs at hand, and
is itself uncertain where these are few.
"""

from __future__ import annotations

import math

from scipy.special import nctdtr, stdtrit

__all__ = ["detectable", "half_width", "power", "seeds_for"]

_MOST = 100_000


def half_width(pairs: int, spread: float, level: float = 0.95) -> float:
    """Half the width of a t interval for the mean of so many differences; inf below two.

    Examples
    --------
    >>> round(half_width(5, 1.0), 3)
    1.242
    """
    if pairs < 2:
        return math.inf
    return float(stdtrit(pairs - 1, (1 + level) / 2)) * spread / math.sqrt(pairs)


def power(pairs: int, difference: float, spread: float, alpha: float = 0.05) -> float:
    """The chance that a two-sided t test of so many pairs finds a difference.

    Parameters
    ----------
    pairs : int
    difference : float
        The true one.
    spread : float
        The standard deviation of differences, in the same unit.
    alpha : float

    Examples
    --------
    >>> round(power(10, 1.0, 1.0), 3)
    0.803
    """
    if pairs < 2:
        return 0.0
    if spread == 0:
        return float(difference != 0)
    free, shift = pairs - 1, abs(difference) / spread * math.sqrt(pairs)
    critical = float(stdtrit(free, 1 - alpha / 2))
    found = 1 - nctdtr(free, shift, critical) + nctdtr(free, shift, -critical)
    # For shifts far out it gives nan, and the test finds them.
    return 1.0 if math.isnan(found) else float(found)


def detectable(pairs: int, spread: float, alpha: float = 0.05, chance: float = 0.8) -> float:
    """The smallest difference that is found with this chance; inf below two pairs.

    Examples
    --------
    >>> round(detectable(10, 1.0), 3)
    0.996
    """
    if pairs < 2:
        return math.inf
    low, high = 0.0, spread
    while high and power(pairs, high, spread, alpha) < chance:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        if power(pairs, middle, spread, alpha) < chance:
            low = middle
        else:
            high = middle
    return high


def seeds_for(difference: float, spread: float, alpha: float = 0.05, chance: float = 0.8) -> int:
    """The fewest pairs of which a t test finds a difference with this chance.

    Parameters
    ----------
    difference, spread : float
        As :func:`power` takes them.
    alpha, chance : float

    Returns
    -------
    int
        100,000 stands for as many and more.

    Examples
    --------
    >>> seeds_for(1.0, 1.0)
    10
    """
    low, high = 1, 2
    while high < _MOST and power(high, difference, spread, alpha) < chance:
        low, high = high, 2 * high
    if high >= _MOST:
        return _MOST
    while high - low > 1:
        middle = (low + high) // 2
        if power(middle, difference, spread, alpha) < chance:
            low = middle
        else:
            high = middle
    return high
