"""The metrics of a finished run: what follows from its epochs and its cases, and from nothing else.

Whoever reads a run's files can so work out again what its result.json says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["final_metrics"]

# What an epoch keeps beside its scores.
_NO_SCORES = ("clipped", "epoch", "event", "receipt", "seconds")


def final_metrics(
    history: Sequence[Mapping[str, Any]], score: str, cases: Mapping[str, float] | None = None
) -> dict[str, float]:
    """The last epoch's scores, and those of the epoch that was best on validation.

    Parameters
    ----------
    history : sequence of mapping
        An entry an epoch, in order; one or more.
    score : str
        The headline of the task, such as "accuracy".
    cases : mapping, optional
        Scores of the test images case by case, which are in place of the epoch's own.

    Examples
    --------
    >>> epochs = [
    ...     {"epoch": 1, "validation_accuracy": 0.5, "test_accuracy": 0.75},
    ...     {"epoch": 2, "validation_accuracy": 0.25, "test_accuracy": 0.5},
    ... ]
    >>> final_metrics(epochs, "accuracy")["best_validation_test_accuracy"]
    0.75
    """
    last = history[-1]
    metrics = {key: value for key, value in last.items() if key not in _NO_SCORES}
    metrics.update({f"test_{key}": value for key, value in (cases or {}).items()})
    if f"validation_{score}" in last:
        best = max(history, key=lambda entry: entry[f"validation_{score}"])
        metrics["best_validation_epoch"] = best["epoch"]
        metrics[f"best_validation_{score}"] = best[f"validation_{score}"]
        metrics[f"best_validation_test_{score}"] = best[f"test_{score}"]
    return metrics
