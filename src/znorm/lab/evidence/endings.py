"""Three readings of how a run ended, of which a comparison may look different.

With a constant learning rate the last epoch alone moves by points; the mean of the last tenth of
the epochs moves less, and the epoch that was best on validation tells what would be deployed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping

from znorm.lab.runs.folder import Run

__all__ = ["ENDINGS", "Ending", "last_epoch"]

# The score of a run, by its name in result.json; nan where the run does not have it.
Ending = Callable[[Run, str], float]


def last_epoch(run: Run, key: str) -> float:
    """The score at the end."""
    return run.metrics.get(key, math.nan)


def last_tenth(run: Run, key: str) -> float:
    """The mean over the last tenth of the epochs, the last one at least."""
    history = run.history
    if len(history) < run.spec.epochs:
        return math.nan  # events.jsonl is not whole
    scores = [entry.get(key, math.nan) for entry in history]
    return statistics.fmean(scores[-max(1, round(run.spec.epochs / 10)) :])


def best_on_validation(run: Run, key: str) -> float:
    """The score of the epoch that was best on the validation part."""
    return run.metrics.get(f"best_validation_{key}", math.nan)


ENDINGS: Mapping[str, Ending] = {
    "last epoch": last_epoch,
    "mean of the last tenth": last_tenth,
    "epoch best on validation": best_on_validation,
}
