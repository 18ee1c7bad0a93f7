"""The expected score of the best of so many trials: curves over the budget of a search."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["expected_best"]


def expected_best(values: Sequence[float], shown: Sequence[float] | None = None) -> list[float]:
    """The expected score of the best of 1, 2, ... trials, drawn from those that were made.

    All sets of so many of the trials count alike: an unbiased estimate for independent trials, such
    as those of a random search. Drawing with replacement would look better than it is for few.

    Parameters
    ----------
    values : sequence of float
        By which the best is chosen, more being better; -inf for a trial that failed.
    shown : sequence of float, optional
        Another score of each trial, of which the expectation is taken: what a choice by ``values``
        brings there. By default ``values``. Trials that tie in ``values`` share their places.

    Returns
    -------
    list of float
        For 1 to all of them; nan where a set of failed trials alone could be drawn.

    References
    ----------
    Dodge et al., "Show your work: improved reporting of experimental results", 2019; without
    replacement: Tang et al., "Showing your work doesn't always work", 2020.

    Examples
    --------
    >>> [round(value, 3) for value in expected_best([0.2, 0.5, 0.8])]
    [0.5, 0.7, 0.8]
    >>> expected_best([0.2, 0.8], shown=[0.9, 0.4])
    [0.65, 0.4]
    """
    others = values if shown is None else shown
    if len(others) != len(values):
        raise ValueError("expected_best: expected a score to show for each of the values")
    count = len(values)
    order = sorted(range(count), key=lambda place: values[place])
    failed = sum(value == -math.inf for value in values)
    groups: dict[float, list[int]] = {}
    for place in order:
        groups.setdefault(values[place], []).append(place)
    curve = []
    for size in range(1, count + 1):
        if size <= failed:
            curve.append(math.nan)
            continue
        expected, below = 0.0, 0
        for members in groups.values():
            upto = below + len(members)
            # Sets whose best is one of these: those of all up to them, without those of all below.
            share = math.comb(upto, size) - math.comb(below, size)
            if share:
                mean = math.fsum(others[place] for place in members) / len(members)
                expected += mean * (share / math.comb(count, size))
            below = upto
        curve.append(expected)
    return curve
