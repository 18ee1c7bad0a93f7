"""Three readings of how a run ended, of which a comparison may look different.

With a constant learning rate the last epoch alone moves by points; the mean of the last tenth of
the epochs moves less, and the epoch that was best on validation tells what would be deployed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from znorm.lab.runs.folder import Run

__all__ = ["ENDINGS", "Ending", "carried_on", "last_epoch", "rule_of"]

# The score of a run, by its name in result.json; nan where the run does not have it.
Ending = Callable[[Run, str], float]


def last_epoch(run: Run, key: str) -> float:
    """The score at the end: of the last epoch, or of the weights that were kept."""
    return run.metrics.get(key, math.nan)


def last_tenth(run: Run, key: str) -> float:
    """The mean over the last tenth of the run's epochs, the last one at least."""
    history = run.history
    if len(history) < run.epochs:
        return math.nan  # events.jsonl is not whole
    scores = [entry.get(key, math.nan) for entry in history]
    return statistics.fmean(scores[-max(1, round(run.epochs / 10)) :])


def best_on_validation(run: Run, key: str) -> float:
    """The score of the epoch that was best on the validation part."""
    return run.metrics.get(f"best_validation_{key}", math.nan)


ENDINGS: Mapping[str, Ending] = {
    "last epoch": last_epoch,
    "mean of the last tenth": last_tenth,
    "epoch best on validation": best_on_validation,
}


def carried_on(run: Run, epochs: int) -> Sequence[Mapping[str, Any]]:
    """A run's epochs up to a number of them: the last one stands for those after an early end.

    A mean over the runs that still train would else be one over fewer and fewer, not chosen at
    random. A run that has not ended, diverged or failed is not carried on.
    """
    history = run.history
    if not history or run.status != "done" or not run.spec.patience:
        return history
    last = history[-1]
    return [*history, *({**last, "epoch": n} for n in range(last["epoch"] + 1, epochs + 1))]


def rule_of(runs: Iterable[Run]) -> str:
    """A sentence or more on when these runs end and which weights they keep; "" for the usual."""
    several = list(runs)
    spec = several[0].spec
    sentences = []
    if spec.patience:
        epochs = "epoch" if spec.patience == 1 else "epochs"
        sentences.append(
            f"A run ends after {spec.patience} {epochs} without a better score on the validation "
            f"part, and after {spec.epochs} at the latest."
        )
        done = sorted(run.epochs for run in several if run.status == "done")
        if done:
            early = sum(count < spec.epochs for count in done)
            span = f"{done[0]}" if done[0] == done[-1] else f"{done[0]} to {done[-1]}"
            sentences.append(
                f"{early} of {len(done)} ended early; they were trained for {span} epochs. Means "
                "by epoch carry the last epoch of such a run on; a run that has ended below the "
                "baseline's score never reaches it."
            )
    if spec.best_epoch:
        sentences.append(
            "Scores and weights are those of the epoch that was best on the validation part, the "
            "first of several."
        )
    return " ".join(sentences)
