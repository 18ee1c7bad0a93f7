from __future__ import annotations

import math

import pytest

from znorm.lab.stats import prediction_interval, t_interval


# Half widths by hand: s / sqrt(n) times Student's t of a printed table (12.706, 4.303, 2.776).
@pytest.mark.parametrize(
    ("values", "mean", "half"),
    [
        ([0.0, 2.0], 1.0, 12.706 * 2**0.5 / 2**0.5),
        ([1.0, 2.0, 3.0], 2.0, 4.303 / 3**0.5),
        ([2.0, 4.0, 4.0, 4.0, 6.0], 4.0, 2.776 * 2**0.5 / 5**0.5),
        ([5.0, 5.0], 5.0, 0.0),
    ],
)
def test_t_interval(values: list[float], mean: float, half: float) -> None:
    interval = t_interval(values)
    assert interval.mean == pytest.approx(mean)
    assert interval.half == pytest.approx(half, rel=1e-3)


def test_one_value_has_no_interval_and_none_is_an_error() -> None:
    assert t_interval([3.0]).half is None
    with pytest.raises(ValueError, match="no values"):
        t_interval([])


def test_the_ends_of_an_interval_and_those_of_none() -> None:
    assert t_interval([1.0, 3.0]).low == pytest.approx(2.0 - 12.7062, rel=1e-5)
    assert t_interval([1.0, 3.0]).high == pytest.approx(2.0 + 12.7062, rel=1e-5)
    assert (t_interval([3.0]).low, t_interval([3.0]).high) == (-math.inf, math.inf)


# Whitmore 1986's formula by hand: s * sqrt(1 + 1/n) times t (4.303, 2.776).
@pytest.mark.parametrize(
    ("values", "half"),
    [([1.0, 2.0, 3.0], 4.303 * (4 / 3) ** 0.5), ([2.0, 4.0, 4.0, 4.0, 6.0], 2.776 * 2.4**0.5)],
)
def test_prediction_interval(values: list[float], half: float) -> None:
    assert prediction_interval(values).half == pytest.approx(half, rel=1e-3)
    assert prediction_interval(values[:1]).half is None
    with pytest.raises(ValueError, match="prediction_interval: no values"):
        prediction_interval([])
