"""What several tests of the lab need: a watch over a loop, and runs as if they had been trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from znorm.lab.runs.folder import Run
from znorm.lab.spec import resolve

__all__ = ["PLAIN", "Watch", "finished", "recorded"]

# The same on every machine.
PLAIN: dict[str, Any] = {"device": "cpu", "precision": "float32"}


class Watch:
    """Records what a loop tells it; asks to stop after so many steps."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.steps = 0
        self.entries: list[dict[str, Any]] = []
        self.stop_after = stop_after

    def step(self, epoch: int, step: int, steps: int) -> None:
        self.steps += 1

    def epoch(self, entry: dict[str, Any]) -> None:
        self.entries.append(entry)

    def note(self, text: str) -> None: ...

    def stop_requested(self) -> bool:
        return self.stop_after is not None and self.steps >= self.stop_after


def recorded(
    root: Path,
    choices: Mapping[str, Any],
    epochs: Iterable[Mapping[str, Any]] = (),
    result: dict[str, Any] | None = None,
) -> Run:
    """A run's folder with these epochs and this result, without any training."""
    run = Run.at(root, resolve({**PLAIN, **choices}))
    run.announce()
    for number, entry in enumerate(epochs, start=1):
        run.log({"event": "epoch", "epoch": number, **entry})
    if result is not None:
        run.finish(result)
    return run


def finished(metrics: Mapping[str, float], **more: Any) -> dict[str, Any]:
    """The result of a run that is done."""
    return {"status": "done", "metrics": dict(metrics), "seconds": 1.0, **more}
