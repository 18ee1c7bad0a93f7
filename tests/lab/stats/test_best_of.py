"""The expected best of so many trials, against all sets of them and against draws of new ones."""

from __future__ import annotations

import itertools
import math
import statistics

import numpy as np
import pytest

from znorm.lab.stats import expected_best


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_mean_over_all_sets_written_out(seed: int) -> None:
    random = np.random.default_rng(seed)
    values = [float(value) for value in random.integers(0, 5, 7)]  # with ties
    shown = [float(value) for value in random.normal(size=7)]
    curve = expected_best(values)
    other = expected_best(values, shown)
    for size in range(1, 8):
        sets = list(itertools.combinations(range(7), size))
        best = [max(values[place] for place in chosen) for chosen in sets]
        assert curve[size - 1] == pytest.approx(statistics.fmean(best))
        # A tie is as often won by each of those that tie in all of the sets together.
        means = {
            v: statistics.fmean(s for u, s in zip(values, shown, strict=True) if u == v)
            for v in set(values)
        }
        assert other[size - 1] == pytest.approx(statistics.fmean(means[one] for one in best))


def test_it_is_right_on_average_for_new_trials() -> None:
    # Of k uniform numbers the largest is k / (k + 1) on average.
    random = np.random.default_rng(0)
    curves = np.array([expected_best(random.random(8).tolist()) for _ in range(4000)])
    expected = [size / (size + 1) for size in range(1, 9)]
    errors = curves.std(0) / math.sqrt(len(curves))
    assert (np.abs(curves.mean(0) - expected) < 4 * errors).all()


def test_trials_that_failed_are_the_lowest() -> None:
    curve = expected_best([-math.inf, 0.5, -math.inf, 0.7])
    assert all(map(math.isnan, curve[:2]))
    # Of three of the four, the better one is in all but one.
    assert curve[2:] == [pytest.approx((3 * 0.7 + 0.5) / 4), 0.7]
    assert expected_best([]) == []
    with pytest.raises(ValueError, match="for each of the values"):
        expected_best([1.0], [])
