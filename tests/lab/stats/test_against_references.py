"""Each statistic beside scipy's, R's or a published worked example."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats as scipy_stats

from znorm.lab import stats
from znorm.lab.stats.anytime import bayes_factor


def samples(seed: int, count: int = 8) -> list[list[float]]:
    random = np.random.default_rng(seed)
    return [random.normal(0.7, 1.0, random.integers(2, 12)).tolist() for _ in range(count)]


@pytest.mark.parametrize("values", samples(0))
def test_t_test_and_sign_flips_are_scipys(values: list[float]) -> None:
    assert stats.t_test(values) == pytest.approx(scipy_stats.ttest_1samp(values, 0).pvalue)
    exact = scipy_stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    assert stats.sign_flip_test(values) == pytest.approx(exact.pvalue)


def test_more_pairs_than_can_be_counted_are_drawn() -> None:
    values = np.random.default_rng(1).normal(0.1, 1.0, 24).tolist()
    exact = scipy_stats.ttest_1samp(values, 0).pvalue  # near it, so many pairs being normal
    assert stats.sign_flip_test(values) == pytest.approx(exact, rel=0.1)
    assert stats.sign_flip_test(values) == stats.sign_flip_test(values)
    assert stats.sign_flip_test([1.0] * 40) == pytest.approx(1 / 200_001)


def test_fishers_example_of_darwins_plants() -> None:
    """Fisher 1935, The Design of Experiments, section 21: 863 of 32,768 sums are as large."""
    heights = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]
    one_sided = stats.sign_flip_test(heights) * 2**15 / 2
    assert one_sided == pytest.approx(863, abs=0.5)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([], math.nan), ([1.0], math.nan), ([2.0, 2.0], 0.0), ([0.0, 0.0], 1.0)],
)
def test_t_test_of_next_to_nothing(values: list[float], expected: float) -> None:
    assert stats.t_test(values) == pytest.approx(expected, nan_ok=True)


def test_signs_that_all_agree_reach_the_smallest_p() -> None:
    for n in range(1, 10):
        assert stats.sign_flip_test([0.1 * k + 1 for k in range(n)]) == stats.smallest_p(n)
    assert math.isnan(stats.sign_flip_test([]))
    # Sums that differ by rounding alone are as far.
    assert stats.sign_flip_test([0.1, 0.2, -0.3]) == 1.0


@pytest.mark.parametrize(
    ("free", "correction"), [(2, 0.5642), (4, 0.7979), (9, 0.9139), (19, 0.9599)]
)
def test_hedges_correction_is_that_of_his_table(free: int, correction: float) -> None:
    """Hedges 1981, table 1: c(m)."""
    values = list(range(free + 1))
    plain = np.mean(values) / np.std(values, ddof=1)
    assert stats.hedges_g(values) / plain == pytest.approx(correction, abs=2e-4)
    assert math.isnan(stats.hedges_g([1.0, 1.0, 1.0]))
    assert math.isnan(stats.hedges_g([1.0, 2.0]))


@pytest.mark.parametrize("seed", range(4))
def test_probability_of_improvement_is_mann_and_whitneys(seed: int) -> None:
    random = np.random.default_rng(seed)
    first, second = random.integers(0, 5, 7).tolist(), random.integers(0, 5, 9).tolist()
    expected = scipy_stats.mannwhitneyu(first, second).statistic / (7 * 9)
    assert stats.probability_of_improvement(first, second) == pytest.approx(expected)
    assert math.isnan(stats.probability_of_improvement([], second))


def test_holm_is_rs() -> None:
    """``p.adjust(c(0.01, 0.02, 0.03, 0.04, 0.05), "holm")`` of R, and Holm's order kept."""
    assert stats.holm([0.01, 0.02, 0.03, 0.04, 0.05]) == pytest.approx(
        [0.05, 0.08, 0.09, 0.09, 0.09]
    )
    assert stats.holm([0.05, 0.01]) == pytest.approx([0.05, 0.02])
    assert stats.holm([0.6, math.nan, 0.7]) == pytest.approx([1.0, math.nan, 1.0], nan_ok=True)
    assert stats.holm([]) == []


@pytest.mark.parametrize("pairs", [2, 3, 5, 10, 40])
@pytest.mark.parametrize("difference", [0.0, 0.5, 1.0, 3.0, 60.0])
def test_power_is_that_of_the_noncentral_t(pairs: int, difference: float) -> None:
    critical = scipy_stats.t.ppf(0.975, pairs - 1)
    shifted = scipy_stats.nct(pairs - 1, difference / 2.0 * math.sqrt(pairs))
    expected = shifted.sf(critical) + shifted.cdf(-critical)
    if math.isfinite(expected):
        assert stats.power(pairs, difference, 2.0) == pytest.approx(expected, abs=1e-9)


def test_seeds_are_those_of_cohens_table() -> None:
    """Cohen 1988, of one sample at alpha 0.05, power 0.80: n of 34 and 15 for d 0.5 and 0.8."""
    assert stats.seeds_for(0.5, 1.0) == 34
    assert stats.seeds_for(0.8, 1.0) == 15
    assert stats.seeds_for(1e-6, 1.0) == 100_000
    assert stats.seeds_for(1.0, 0.0) == 2
    assert stats.detectable(34, 1.0) == pytest.approx(0.5, abs=0.01)
    assert stats.detectable(1, 1.0) == math.inf
    assert stats.detectable(5, 0.0) == 0.0


@pytest.mark.parametrize("values", samples(2))
def test_interquartile_mean_is_scipys(values: list[float]) -> None:
    expected = scipy_stats.trim_mean(values, 0.25)
    assert stats.interquartile_mean(values) == pytest.approx(expected)


def test_the_nested_bootstrap_is_scipys_where_there_is_one_seed() -> None:
    cases = np.random.default_rng(3).normal(size=40)
    _, ends = stats.nested_bootstrap([cases.tolist()])
    other = scipy_stats.bootstrap(
        (cases,), np.mean, method="percentile", n_resamples=10_000, rng=np.random.default_rng(1)
    )
    assert ends == pytest.approx(tuple(other.confidence_interval), abs=0.02)
    assert stats.nested_bootstrap([cases.tolist()])[1] == ends
    with pytest.raises(ValueError, match="the same cases"):
        stats.nested_bootstrap([[1.0], [1.0, 2.0]])


def test_the_nested_bootstrap_has_the_spread_of_seeds_and_cases() -> None:
    random = np.random.default_rng(4)
    seeds, cases = random.normal(0, 2, (30, 1)), random.normal(0, 3, (1, 50))
    table = seeds + cases + random.normal(0, 0.1, (30, 50))
    _, (low, high) = stats.nested_bootstrap(table.tolist())
    expected = 2 * 1.96 * math.sqrt(seeds.var() / 30 + cases.var() / 50)
    assert high - low == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("seed", range(6))
def test_median_time_is_that_of_scipys_survival_function(seed: int) -> None:
    random = np.random.default_rng(seed)
    times, reached = random.integers(1, 12, 9).astype(float), random.random(9) < 0.7
    if not reached.any():
        reached[0] = True
    data = scipy_stats.CensoredData.right_censored(times, ~reached)
    found = scipy_stats.ecdf(data).sf
    below = [
        q for q, p in zip(found.quantiles, found.probabilities, strict=True) if p <= 0.5 + 1e-9
    ]
    expected = below[0] if below else math.inf
    assert stats.median_time(times.tolist(), reached.tolist()) == expected
    assert math.isnan(stats.median_time([], []))


SCORES = {"a": [9, 8, 7, 9, 3], "b": [5, 8, 5, 5, 3], "c": [1, 2, 3, 1, 9]}


@pytest.mark.parametrize("count", range(1, 30))
def test_the_medians_interval_is_that_of_scipys_quantile_test(count: int) -> None:
    times = np.random.default_rng(count).exponential(10.0, count)
    found: Any = scipy_stats.quantile_test(times, p=0.5).confidence_interval(0.95)
    expected = None if math.isnan(found.low) or math.isnan(found.high) else (found.low, found.high)
    assert stats.median_interval(times.tolist(), [True] * count) == expected
    # An end among runs that never arrive is none.
    late = np.median(times)
    reached = times <= late
    watched = np.where(reached, times, late + 1)
    if expected is not None:
        assert stats.median_interval(watched.tolist(), reached.tolist()) == (expected[0], math.inf)


def test_methods_that_are_not_told_apart_are_under_one_bar() -> None:
    """The mean ranks of Demšar 2006, table 6: four classifiers on 14 sets."""
    ranks = {"C4.5": 3.143, "C4.5+m": 2.000, "C4.5+cf": 2.893, "C4.5+m+cf": 1.964}
    assert stats.nemenyi_distance(4, 14) == pytest.approx(1.25, abs=0.01)
    groups = stats.not_told_apart(ranks, stats.nemenyi_distance(4, 14))
    assert groups == [["C4.5+m+cf", "C4.5+m", "C4.5+cf", "C4.5"]]
    # At 10 % C4.5 is worse than the two that tune m, and nothing else is told apart, as he says.
    assert stats.not_told_apart(ranks, stats.nemenyi_distance(4, 14, alpha=0.1)) == [
        ["C4.5+m+cf", "C4.5+m", "C4.5+cf"],
        ["C4.5+cf", "C4.5"],
    ]
    assert stats.not_told_apart({"a": 1.0, "b": 2.0}, 0.5) == []


def test_ranks_and_friedmans_test_are_scipys() -> None:
    table = np.array(list(SCORES.values()))
    ranks = scipy_stats.rankdata(-table, axis=0).mean(1)
    assert list(stats.mean_ranks(SCORES).values()) == pytest.approx(ranks)
    assert stats.friedman_test(SCORES) == pytest.approx(
        scipy_stats.friedmanchisquare(*SCORES.values()).pvalue
    )
    assert math.isnan(stats.friedman_test({"a": [1, 2], "b": [2, 3]}))
    assert math.isnan(stats.friedman_test({"a": [1, 2], "b": [1, 2], "c": [1, 2]}))


@pytest.mark.parametrize(("methods", "critical"), [(2, 1.960), (3, 2.343), (5, 2.728), (10, 3.164)])
def test_nemenyis_distance_is_that_of_demsars_table(methods: int, critical: float) -> None:
    """Demšar 2006, table 5a, alpha 0.05."""
    expected = critical * math.sqrt(methods * (methods + 1) / (6 * 14))
    assert stats.nemenyi_distance(methods, 14) == pytest.approx(expected, rel=1e-3)


def test_a_profile_by_hand() -> None:
    times = {"a": [1.0, 10.0, math.inf, math.inf], "b": [1.5, 4.0, 7.0, math.inf]}
    found = stats.performance_profile(times, [1, 1.5, 3])
    assert found == {"a": [0.25, 0.25, 0.5], "b": [0.5, 0.75, 0.75]}
    with pytest.raises(ValueError, match="the same workloads"):
        stats.performance_profile({"a": [1.0], "b": []}, [1])


@pytest.mark.parametrize(("pairs", "t"), [(2, 1.0), (4, 3.0), (9, 0.2), (30, 2.5)])
def test_the_bayes_factor_is_a_ratio_of_likelihoods(pairs: int, t: float) -> None:
    """By numerical integration over the difference, normal with variance 4."""
    grid = np.linspace(-16, 16, 40_001)
    shifted = scipy_stats.nct.pdf(t, pairs - 1, grid * math.sqrt(pairs))
    mixed = np.trapezoid(shifted * scipy_stats.norm.pdf(grid, scale=2), grid)
    expected = mixed / scipy_stats.t.pdf(t, pairs - 1)
    assert bayes_factor(pairs, t) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("values", samples(5))
def test_the_confidence_sequence_ends_where_the_bayes_factor_says(values: list[float]) -> None:
    found = stats.confidence_sequence(values)
    n, spread = len(values), float(np.std(values, ddof=1))
    if found.half is None:
        assert bayes_factor(n, 1e9) < 20
    else:
        assert bayes_factor(n, found.half / spread * math.sqrt(n)) == pytest.approx(20)
    assert stats.confidence_sequence(values[:1]).half is None
    with pytest.raises(ValueError, match="no differences"):
        stats.confidence_sequence([])
