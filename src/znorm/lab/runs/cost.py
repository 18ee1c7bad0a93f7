"""The cost of a grid of runs on this machine, from a few measured steps of each model."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table as RichTable

from znorm.lab import trust
from znorm.lab.datasets import Dataset
from znorm.lab.runs.folder import Run
from znorm.lab.spec import RunSpec
from znorm.lab.text import duration, literal
from znorm.lab.training import memory
from znorm.lab.training.setup import check_images, first_images, load_once, set_up
from znorm.lab.training.step import evaluation_loss, take_step

__all__ = ["Cost", "costs_on_terminal", "plan"]

# On a CPU a step of fewer images tells the rate of a whole batch, once it takes so long.
_SECONDS = 1.0
_STEPS = 3


@dataclass(frozen=True)
class Cost:
    """The cost of the runs of one configuration.

    Parameters
    ----------
    spec : RunSpec
        Of one of them.
    runs, left : int
        How many there are, and how many of them are still to be trained.
    training, evaluation : float
        Images a second; 0 where no step fits in memory.
    seconds : float
        Of one run; nan where no step fits.
    memory : int
        Bytes that a training step keeps, at the least.
    micro_batch : int or None
        What fits in memory, where a batch does not; 0 if nothing does.
    """

    spec: RunSpec
    runs: int
    left: int
    training: float
    evaluation: float
    seconds: float
    memory: int
    micro_batch: int | None


def plan(
    specs: Sequence[RunSpec],
    out: str | Path,
    measuring: Callable[[RunSpec], None] = lambda spec: None,
    further: tuple[int, int] = (0, 0),
) -> list[Cost]:
    """Measure each model's steps, and say what all runs that are not done under ``out`` will take.

    Training and evaluation alone: what a run takes to begin and to save is not in it. The steps are
    those of the plain optimizer; a transform costs a few percent, which is less than times scatter.
    ``measuring`` is told what is measured next; ``further`` is how many runs there will be beside
    these, whose specifications are not known yet, and how many of them are left. What the
    specifications name is the caller's own: models that are code elsewhere are built.
    """
    with trust.trusting(trust.names_of(specs)):
        return _plan(specs, out, measuring, further)


def _plan(
    specs: Sequence[RunSpec],
    out: str | Path,
    measuring: Callable[[RunSpec], None],
    further: tuple[int, int],
) -> list[Cost]:
    groups: dict[str, list[RunSpec]] = {}
    for spec in specs:
        groups.setdefault(spec.across_folds, []).append(spec)
    datasets: dict[str, Dataset] = {}
    costs = []
    for members in groups.values():
        spec = members[0]
        measuring(spec)
        dataset = load_once(spec, datasets)
        check_images(spec, dataset)
        left = sum(Run.at(out, one).result is None for one in members)
        costs.append(_cost(spec, dataset, len(members) + further[0], left + further[1]))
    return costs


def _cost(spec: RunSpec, dataset: Dataset, runs: int, left: int) -> Cost:
    batch = min(spec.batch_size, len(dataset.train))
    size = min(spec.micro_batch or batch, batch)
    needed = memory.need(spec, dataset)
    free = _free(spec)
    fits = size if free is None else needed.advised(size, free)
    measured = None
    while fits and measured is None:
        try:
            measured = _paces(spec, dataset, fits)
        except Exception as error:
            if not memory.is_out_of_memory(error):
                raise
            # What is kept at the least fitted, and all of it does not.
            fits = fits // 2 if fits >= 4 else None
    if measured is None:
        return Cost(spec, runs, left, 0.0, 0.0, math.nan, needed.of(size), 0)
    pace, seen = measured
    steps = math.ceil(len(dataset.train) / batch) * math.ceil(batch / (fits or size))
    epoch = pace.fixed * steps + pace.each * len(dataset.train)
    # At the end once more, for the threshold and case by case.
    looked_at = (spec.epochs + 1) * (len(dataset.validation) + len(dataset.test))
    seconds = spec.epochs * epoch + looked_at * seen
    micro_batch = None if fits == size else (fits or 0)
    rate = len(dataset.train) / epoch
    return Cost(spec, runs, left, rate, 1 / seen, seconds, needed.of(size), micro_batch)


@dataclass(frozen=True)
class _Pace:
    """Seconds of a training step: so many, and so many more for each image."""

    fixed: float
    each: float


def _free(spec: RunSpec) -> int | None:
    if spec.device == "cuda":
        return torch.cuda.mem_get_info()[0]
    return memory.available() if spec.device == "cpu" else None


def _paces(spec: RunSpec, dataset: Dataset, most: int) -> tuple[_Pace, float]:
    """The pace of steps with at most so many images at once; seconds an image in evaluation."""
    model, optimizer = set_up(spec, dataset)

    def step(images: torch.Tensor, targets: torch.Tensor) -> None:
        take_step(spec, model, optimizer, images, targets)

    @torch.no_grad()
    def look(images: torch.Tensor, targets: torch.Tensor) -> None:
        evaluation_loss(spec, model, images, targets)

    # What a GPU takes for a small batch says nothing of a large one.
    size = most if spec.device == "cuda" else min(2, most)
    taken: dict[int, float] = {}
    model.train()
    while True:
        images, targets = first_images(spec, dataset, size)
        step(images, targets)  # the first one sets up what is used again
        taken[size] = statistics.median(_timed(spec, step, images, targets) for _ in range(_STEPS))
        if size == most or taken[size] > _SECONDS:
            break
        size = min(most, 4 * size)
    model.eval()
    look(images, targets)
    seen = statistics.median(_timed(spec, look, images, targets) for _ in range(_STEPS))
    least = min(taken)
    each = (taken[size] - taken[least]) / (size - least) if size > least else taken[size] / size
    if each <= 0:  # times scatter
        each = taken[size] / size
    return _Pace(max(0.0, taken[size] - each * size), each), seen / size


def _timed(spec: RunSpec, work: Callable[..., None], *arguments: torch.Tensor) -> float:
    start = time.perf_counter()
    work(*arguments)
    if spec.device == "cuda":
        torch.cuda.synchronize()
    elif spec.device == "mps":
        torch.mps.synchronize()
    return time.perf_counter() - start


def costs_on_terminal(costs: Sequence[Cost]) -> RichTable:
    """The plan for a terminal, with the sum of all that is left."""
    title = "What it costs here, from measured steps"
    if any(cost.spec.patience for cost in costs):
        title += "; at most, since runs end where their patience does"
    rich = RichTable(title=title, title_justify="left")
    for title in ("Task", "Model", "Arithmetic"):
        rich.add_column(title)
    for title in ("Images/s", "A run", "Runs left", "Together", "Memory, at least"):
        rich.add_column(title, justify="right")
    for cost in costs:
        spec = cost.spec
        needed = f"{cost.memory / 1e9:.1f} GB"
        if cost.micro_batch is not None:
            advice = f"--micro-batch {cost.micro_batch}" if cost.micro_batch else "too large"
            needed += f": {advice}"
        rich.add_row(
            spec.task,
            literal(spec.model),
            f"{spec.precision}, {spec.device}",
            f"{cost.training:,.1f}",
            duration(cost.seconds),
            f"{cost.left} of {cost.runs}",
            duration(cost.left * cost.seconds),
            needed,
        )
    rich.add_section()
    left = sum(cost.left for cost in costs)
    total = duration(sum(cost.left * cost.seconds for cost in costs))
    rich.add_row("all", "", "", "", "", f"{left} of {sum(c.runs for c in costs)}", total, "")
    return rich
