"""The time that runs take to what the baseline ended with; those that never do count as such."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from znorm.lab.evidence.pairs import why_no_pair
from znorm.lab.runs.folder import Run
from znorm.lab.stats import median_interval, median_time

__all__ = ["Acceleration", "Arrival", "acceleration"]


@dataclass(frozen=True)
class Arrival:
    """When a run first scored what its seed's baseline scored at its end.

    Parameters
    ----------
    run : Run
    epoch : int or None
        From 1; None where it never did.
    seconds : float or None
        From its start to the end of that epoch.
    watched : int
        Epochs that it was given.
    watched_seconds : float
    """

    run: Run
    epoch: int | None
    seconds: float | None
    watched: int
    watched_seconds: float


@dataclass(frozen=True)
class Acceleration:
    """The arrivals of a method's runs.

    Parameters
    ----------
    arrivals : tuple of Arrival
    epochs, seconds : float
        By when half of them are there, by Kaplan and Meier's estimate: inf where fewer than half
        ever are, nan where nothing can be said.
    interval : tuple of float or None
        Of these epochs, at 95 %; None for fewer than six runs.
    """

    arrivals: tuple[Arrival, ...]
    epochs: float
    seconds: float
    interval: tuple[float, float] | None = None

    @property
    def reached(self) -> int:
        return sum(arrival.epoch is not None for arrival in self.arrivals)


def acceleration(runs: Sequence[Run], reference: Sequence[Run], key: str) -> Acceleration | None:
    """The arrivals of runs at the final scores of the baseline's runs of their seeds.

    A run that diverged, failed or ended below never arrives, whether it was trained for all of its
    epochs or its patience had ended before.

    Parameters
    ----------
    runs, reference : sequence of Run
    key : str
        Of the score in events.jsonl and result.json; more is better.

    Returns
    -------
    Acceleration or None
        None where events.jsonl of a finished run is not whole.
    """
    finals = {
        run.spec.seed: (run, run.metrics[key])
        for run in reference
        if run.status == "done" and key in run.metrics
    }
    arrivals: list[Arrival] = []
    for run in runs:
        if run.spec.seed not in finals or run.status not in ("done", "diverged", "failed"):
            continue
        other, final = finals[run.spec.seed]
        if why_no_pair(run, other) is not None:
            continue
        history = run.history
        if run.status == "done" and len(history) < run.epochs:
            return None
        first = next((entry for entry in history if entry.get(key, -1.0) >= final), None)
        if run.status != "done":
            first = None
        arrivals.append(
            Arrival(
                run,
                None if first is None else first["epoch"],
                None if first is None else first.get("seconds"),
                run.spec.epochs,
                float((run.result or {}).get("seconds", 0.0)),
            )
        )
    there = [arrival.epoch is not None for arrival in arrivals]
    epochs = [arrival.epoch or arrival.watched for arrival in arrivals]
    # Epochs are watched for as long in all runs; seconds are not, least of all in one that diverged
    # at once: such a run is later than any that arrived.
    seconds = [math.inf if arrival.epoch is None else arrival.seconds for arrival in arrivals]
    known = [second for second in seconds if second is not None]
    timed = median_time(known, there) if len(known) == len(seconds) else math.nan
    return Acceleration(
        tuple(arrivals), median_time(epochs, there), timed, median_interval(epochs, there)
    )
