"""The progress of a grid as a person sees it: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Column

from znorm.lab.errors import DataError
from znorm.lab.runs.folder import Run
from znorm.lab.spec import RunSpec
from znorm.lab.tasks import TASKS

__all__ = ["Display", "Plain", "Silent", "Terminal", "choose"]


class Display(Protocol):
    """Told of each thing as it happens."""

    def note(self, text: str) -> None:
        """Something to know before the grid begins."""

    def begin(self, runs: Sequence[Run], jobs: int = 1) -> None:
        """The grid that will run, and what of it is there already."""

    def run_begins(self, number: int, run: Run) -> None:
        """A run starts or goes on."""

    def step(self, spec: RunSpec, epoch: int, step: int, steps: int) -> None:
        """A training step is done."""

    def epoch(self, spec: RunSpec, entry: dict[str, Any]) -> None:
        """An epoch is done."""

    def run_ends(self, number: int, run: Run, note: str = "") -> None:
        """A run has ended, or is left alone for the reason noted."""

    def end(self) -> None:
        """The grid is done, or was stopped."""


def name(run: Run, *, tuned: bool = False) -> str:
    """The name of a run on screen; ``tuned``: among runs that differ in hyperparameters."""
    spec = run.spec
    own = f" lr {spec.learning_rate:g} {spec.schedule}" if tuned else ""
    return f"{spec.model} {spec.method}{own} seed {spec.seed}"


def _differ(runs: Sequence[Run]) -> bool:
    return len({(run.spec.learning_rate, run.spec.schedule) for run in runs}) > 1


def arithmetic(runs: Sequence[Run]) -> str:
    """In which precision, and where, each model is trained."""
    specs = [run.spec for run in runs]
    kinds = dict.fromkeys((spec.model, spec.precision, spec.device) for spec in specs)
    return "; ".join(f"{model} in {precision} on {device}" for model, precision, device in kinds)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class _Remaining:
    """Time left, from the epochs that this process has done."""

    def __init__(self, runs: Sequence[Run], jobs: int) -> None:
        self.jobs = jobs
        self.total = sum(run.spec.epochs for run in runs if run.result is None)
        self.finished = sum(len(run.history) for run in runs if run.result is None)
        self.done = 0.0
        self.start = time.perf_counter()

    def end(self, run: Run) -> None:
        """A run has ended, perhaps before the epochs that it was given."""
        with suppress(DataError):
            self.total -= run.spec.epochs - run.epochs

    def leave(self, run: Run) -> None:
        """Another process, of another command, has it: its epochs are not waited for here."""
        try:
            at_work = run.status == "running"
        except DataError:
            return  # what cannot be read was not counted
        if self.jobs == 1 and at_work:
            self.total -= run.spec.epochs
            self.finished -= len(run.history)

    def text(self) -> str:
        if self.done < 0.05:
            return ""
        pace = (time.perf_counter() - self.start) / self.done
        # What others have done by now is not known; that they are as fast is likely.
        left = max(0.0, (self.total - self.finished) / self.jobs - self.done)
        return f"about {_duration(pace * left)} left"


class Silent:
    """Says nothing; for notebooks and tests."""

    def note(self, text: str) -> None: ...
    def begin(self, runs: Sequence[Run], jobs: int = 1) -> None: ...
    def run_begins(self, number: int, run: Run) -> None: ...
    def step(self, spec: RunSpec, epoch: int, step: int, steps: int) -> None: ...
    def epoch(self, spec: RunSpec, entry: dict[str, Any]) -> None: ...
    def run_ends(self, number: int, run: Run, note: str = "") -> None: ...
    def end(self) -> None: ...


class Plain(Silent):
    """A line a run, and one a while within it."""

    def __init__(self, console: Console, every: float = 10.0) -> None:
        self.console = console
        self.every = every
        self.total = 0
        self.said = 0.0

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
        self.said = time.perf_counter()

    def note(self, text: str) -> None:
        self._say(text)

    def begin(self, runs: Sequence[Run], jobs: int = 1) -> None:
        self.total = len(runs)
        self.tuned = _differ(runs)
        self.remaining = _Remaining(runs, jobs)
        there = sum(run.result is not None for run in runs)
        before = f", {there} of them finished before" if there else ""
        self._say(f"{self.total} runs{before}: {arithmetic(runs)}")

    def epoch(self, spec: RunSpec, entry: dict[str, Any]) -> None:
        self.remaining.done += 1
        if time.perf_counter() - self.said > self.every:
            left = self.remaining.text()
            self._say(
                f"  {spec.method} seed {spec.seed}: epoch {entry['epoch']} of {spec.epochs}, "
                f"train loss {entry['train_loss']:.4f}" + (f"; {left}" if left else "")
            )

    def run_ends(self, number: int, run: Run, note: str = "") -> None:
        if note:
            self.remaining.leave(run)
        else:
            self.remaining.end(run)
        title = name(run, tuned=self.tuned)
        self._say(f"[{number + 1}/{self.total}] {title}: {note or ending(run)}")


class Terminal(Silent):
    """A bar for the grid, and one for each run at work."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress = Progress(
            # What counts first, so that a narrow terminal cuts off what counts least.
            TextColumn("{task.description}", table_column=Column(no_wrap=True)),
            MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=5)),
            BarColumn(bar_width=12),
            TextColumn(
                "{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis")
            ),
            console=console,
        )
        self.grid: TaskID | None = None
        # Of each run at work, by its specification's id: its bar, and how far its epoch is.
        self.bars: dict[int, TaskID] = {}
        self.fractions: dict[int, float] = {}

    def note(self, text: str) -> None:
        self.progress.console.print(text, markup=False, highlight=False)

    def begin(self, runs: Sequence[Run], jobs: int = 1) -> None:
        self.tuned = _differ(runs)
        self.remaining = _Remaining(runs, jobs)
        self.progress.console.print(arithmetic(runs), markup=False, highlight=False)
        self.progress.start()
        self.grid = self.progress.add_task("runs", total=len(runs), note="")

    def run_begins(self, number: int, run: Run) -> None:
        self._end_bar(run)  # of a run that begins again
        bar = self.progress.add_task(name(run, tuned=self.tuned), total=run.spec.epochs, note="")
        self.bars[id(run.spec)], self.fractions[id(run.spec)] = bar, 0.0

    def step(self, spec: RunSpec, epoch: int, step: int, steps: int) -> None:
        assert self.grid is not None
        # One epoch is one unit of work; `done` moves by a fraction of it at each step.
        self.remaining.done += step / steps - self.fractions[id(spec)]
        self.fractions[id(spec)] = 0.0 if step == steps else step / steps
        self.progress.update(self.bars[id(spec)], completed=epoch + (step == steps))
        self.progress.update(self.grid, note=self.remaining.text())

    def epoch(self, spec: RunSpec, entry: dict[str, Any]) -> None:
        note = f"loss {entry['train_loss']:.3f}"
        score = TASKS[spec.task].score
        if f"validation_{score}" in entry:
            note += f", {score} {entry[f'validation_{score}']:.3f}"
        self.progress.update(self.bars[id(spec)], completed=entry["epoch"], note=note)

    def run_ends(self, number: int, run: Run, note: str = "") -> None:
        assert self.grid is not None
        if note:
            self.remaining.leave(run)
        else:
            self.remaining.end(run)
        self._end_bar(run)
        self.progress.update(self.grid, advance=1)
        self.progress.console.print(
            f"{name(run, tuned=self.tuned)}: {note or ending(run)}", markup=False, highlight=False
        )

    def _end_bar(self, run: Run) -> None:
        bar = self.bars.pop(id(run.spec), None)
        if bar is not None:
            self.progress.remove_task(bar)

    def end(self) -> None:
        self.progress.stop()


def ending(run: Run) -> str:
    """The end of a run, in a few words."""
    result = run.result
    if result is None:
        return run.status
    if result["status"] == "diverged":
        return f"diverged at step {result['diverged_step']}"
    if result["status"] == "failed":
        return f"failed: {result['error']}"
    metrics = result["metrics"]
    score = TASKS[run.spec.task].score
    return (
        f"test {score} {metrics[f'test_{score}']:.4f}, train loss {metrics['train_loss']:.4f}, "
        f"{_duration(result['seconds'])}"
    )


def choose(console: Console) -> Display:
    """Bars if a person looks on, else lines."""
    return Terminal(console) if console.is_terminal else Plain(console)
