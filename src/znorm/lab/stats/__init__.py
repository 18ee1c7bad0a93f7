"""Statistics of a few runs, honest about how few they are; of numbers alone, no runs."""

from __future__ import annotations

from znorm.lab.stats.anytime import confidence_sequence, half_width_at_any_time, p_at_any_time
from znorm.lab.stats.best_of import expected_best
from znorm.lab.stats.intervals import (
    Interval,
    prediction_interval,
    resampled_interval,
    t_interval,
)
from znorm.lab.stats.multiple import holm
from znorm.lab.stats.pairs import (
    hedges_g,
    probability_of_improvement,
    sign_flip_test,
    smallest_p,
    t_test,
)
from znorm.lab.stats.power import detectable, half_width, power, seeds_for
from znorm.lab.stats.robust import interquartile_mean, nested_bootstrap
from znorm.lab.stats.survival import median_interval, median_time
from znorm.lab.stats.workloads import (
    friedman_test,
    mean_ranks,
    nemenyi_distance,
    not_told_apart,
    performance_profile,
)

__all__ = [
    "Interval",
    "confidence_sequence",
    "detectable",
    "expected_best",
    "friedman_test",
    "half_width",
    "half_width_at_any_time",
    "hedges_g",
    "holm",
    "interquartile_mean",
    "mean_ranks",
    "median_interval",
    "median_time",
    "nemenyi_distance",
    "nested_bootstrap",
    "not_told_apart",
    "p_at_any_time",
    "performance_profile",
    "power",
    "prediction_interval",
    "probability_of_improvement",
    "resampled_interval",
    "seeds_for",
    "sign_flip_test",
    "smallest_p",
    "t_interval",
    "t_test",
]
