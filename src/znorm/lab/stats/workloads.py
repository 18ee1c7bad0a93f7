"""Methods over several workloads at once: which are near the best on how many, and how they rank.

A workload is one task with one model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.special import chdtrc

__all__ = [
    "friedman_test",
    "mean_ranks",
    "nemenyi_distance",
    "not_told_apart",
    "performance_profile",
]


def performance_profile(
    times: Mapping[str, Sequence[float]], factors: Sequence[float]
) -> dict[str, list[float]]:
    """The share of workloads that each method does within a factor of the fastest one's time.

    Parameters
    ----------
    times : mapping
        Of each method its time to the target on each workload; inf where it is not reached.
    factors : sequence of float
        From 1.

    Raises
    ------
    ValueError
        If methods have different numbers of workloads.

    References
    ----------
    Dolan and Moré, "Benchmarking optimization software with performance profiles", 2002; Dahl et
    al., "Benchmarking neural network training algorithms" (AlgoPerf), 2023.

    Examples
    --------
    >>> performance_profile({"a": [1.0, 4.0], "b": [2.0, 2.0]}, [1, 2])
    {'a': [0.5, 1.0], 'b': [0.5, 1.0]}
    """
    if len({len(row) for row in times.values()}) > 1:
        raise ValueError("performance_profile: expected the same workloads of each method")
    table = np.asarray(list(times.values()), dtype=np.float64)
    best = table.min(0)
    # Where nobody arrives, nobody is near the best.
    ratios = np.divide(table, best, out=np.full_like(table, np.inf), where=np.isfinite(best))
    return {
        name: [float(np.mean(row <= factor)) for factor in factors]
        for name, row in zip(times, ratios, strict=True)
    }


def mean_ranks(scores: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The mean rank of each method over workloads, 1 for the best; ties share theirs.

    Parameters
    ----------
    scores : mapping
        Of each method its score on each workload, more being better.

    Examples
    --------
    >>> mean_ranks({"a": [0.9, 0.8], "b": [0.7, 0.8], "c": [0.6, 0.5]})
    {'a': 1.25, 'b': 1.75, 'c': 3.0}
    """
    table = np.asarray(list(scores.values()), dtype=np.float64)
    above = (table[None] > table[:, None]).sum(1)
    tied = (table[None] == table[:, None]).sum(1)
    return dict(zip(scores, (above + (tied + 1) / 2).mean(1).tolist(), strict=True))


def friedman_test(scores: Mapping[str, Sequence[float]]) -> float:
    """The p that methods' ranks over workloads are a matter of chance.

    By the chi-square approximation, which wants about ten workloads or more.

    Parameters
    ----------
    scores : mapping
        As :func:`mean_ranks` takes them.

    Returns
    -------
    float
        nan for fewer than three methods or two workloads, or where all tie.

    References
    ----------
    Demšar, "Statistical comparisons of classifiers over multiple data sets", 2006.

    Examples
    --------
    >>> round(friedman_test({"a": [9, 8, 7, 9], "b": [5, 6, 5, 5], "c": [1, 2, 3, 1]}), 4)
    0.0183
    """
    table = np.asarray(list(scores.values()), dtype=np.float64)
    if table.ndim < 2 or table.shape[0] < 3 or table.shape[1] < 2:
        return math.nan
    methods, workloads = table.shape
    ranks = np.asarray(list(mean_ranks(scores).values()))
    # Ties lower the largest sum that ranks can reach.
    lost = 0.0
    for column in table.T:
        _, counts = np.unique(column, return_counts=True)
        lost += float((counts**3 - counts).sum())
    share = 1 - lost / (workloads * (methods**3 - methods))
    if share == 0:
        return math.nan
    spread = ((ranks - (methods + 1) / 2) ** 2).sum()
    statistic = 12 * workloads / (methods * (methods + 1)) * spread / share
    return float(chdtrc(methods - 1, statistic))


def nemenyi_distance(methods: int, workloads: int, alpha: float = 0.05) -> float:
    """The difference of two mean ranks from which on they differ, over all pairs of methods.

    Parameters
    ----------
    methods, workloads : int
    alpha : float

    References
    ----------
    Nemenyi, "Distribution-free multiple comparisons", 1963.

    Examples
    --------
    >>> round(nemenyi_distance(5, 10), 2)
    1.93
    """
    from scipy.stats import studentized_range  # takes long to import, and is for many workloads

    critical = studentized_range.ppf(1 - alpha, methods, np.inf) / math.sqrt(2)
    return float(critical * math.sqrt(methods * (methods + 1) / (6 * workloads)))


def not_told_apart(ranks: Mapping[str, float], distance: float) -> list[list[str]]:
    """The largest groups of methods whose mean ranks lie within a distance, by rising rank.

    The bars of a critical-difference diagram.

    Parameters
    ----------
    ranks : mapping
        As :func:`mean_ranks` gives them.
    distance : float
        As :func:`nemenyi_distance` gives it.

    References
    ----------
    Demšar, "Statistical comparisons of classifiers over multiple data sets", 2006.

    Examples
    --------
    >>> not_told_apart({"a": 1.2, "b": 1.9, "c": 2.8}, 1.0)
    [['a', 'b'], ['b', 'c']]
    """
    order = sorted(ranks, key=lambda name: ranks[name])
    groups: list[list[str]] = []
    for first, name in enumerate(order):
        group = [other for other in order[first:] if ranks[other] - ranks[name] < distance]
        if len(group) > 1 and not (groups and set(group) <= set(groups[-1])):
            groups.append(group)
    return groups
