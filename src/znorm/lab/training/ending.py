"""The end of a run: when it comes, and its metrics, which follow from its epochs and its cases.

Whoever reads a run's files can so work out again what its result.json says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["best_of", "final_metrics", "has_no_patience_left"]

# What an epoch keeps beside its scores.
_NO_SCORES = ("clipped", "epoch", "event", "receipt", "seconds")


def final_metrics(
    history: Sequence[Mapping[str, Any]],
    score: str,
    cases: Mapping[str, float] | None = None,
    *,
    best_epoch: bool = False,
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
    best_epoch : bool
        Whether all are those of the epoch that was best on validation.

    Examples
    --------
    >>> epochs = [
    ...     {"epoch": 1, "validation_accuracy": 0.5, "test_accuracy": 0.75},
    ...     {"epoch": 2, "validation_accuracy": 0.25, "test_accuracy": 0.5},
    ... ]
    >>> final_metrics(epochs, "accuracy")["best_validation_test_accuracy"]
    0.75
    """
    best = best_of(history, score)
    last = best if best_epoch and best is not None else history[-1]
    metrics = {key: value for key, value in last.items() if key not in _NO_SCORES}
    metrics.update({f"test_{key}": value for key, value in (cases or {}).items()})
    if best is not None:
        metrics["best_validation_epoch"] = best["epoch"]
        metrics[f"best_validation_{score}"] = best[f"validation_{score}"]
        metrics[f"best_validation_test_{score}"] = best[f"test_{score}"]
    return metrics


def best_of(history: Sequence[Mapping[str, Any]], score: str) -> Mapping[str, Any] | None:
    """The epoch that was best on validation, the first of several; None where none has a score.

    >>> best_of([{"epoch": 1, "validation_f1": 0.5}, {"epoch": 2, "validation_f1": 0.5}], "f1")
    {'epoch': 1, 'validation_f1': 0.5}
    """
    key = f"validation_{score}"
    if not history or key not in history[-1]:
        return None
    return max(history, key=lambda entry: entry[key])


def has_no_patience_left(
    history: Sequence[Mapping[str, Any]], score: str, patience: int | None
) -> bool:
    """Tell whether so many epochs have passed since the one that was best on validation.

    >>> has_no_patience_left([{"validation_f1": x, "epoch": x} for x in (2, 1, 1)], "f1", 1)
    True
    """
    best = best_of(history, score)
    if patience is None or best is None:
        return False
    return len(history) - history.index(best) > patience
