"""Runs and grids of runs: made into specifications, trained one after the other, reported."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from znorm.lab import tasks
from znorm.lab.datasets import Dataset
from znorm.lab.errors import ConfigurationError, DataError, Interrupted, LabError
from znorm.lab.floor import floor
from znorm.lab.methods import METHODS
from znorm.lab.models import build
from znorm.lab.progress import Display, Silent
from znorm.lab.registry import lookup
from znorm.lab.reporting.page import write_page
from znorm.lab.spec import DataSpec, RunSpec, resolve
from znorm.lab.store import Run, find
from znorm.lab.training.interruption import Interruption
from znorm.lab.training.loop import train

__all__ = ["compare", "grid", "report", "run", "status"]

PathLike: TypeAlias = str | os.PathLike[str]


def grid(
    methods: Sequence[str] | None, seeds: int | Sequence[int], choices: Mapping[str, Any]
) -> list[RunSpec]:
    """The specifications of a comparison.

    Methods stand side by side within a seed, so that a grid stopped halfway is balanced.

    Parameters
    ----------
    methods : sequence of str, str or None
        None for the six of the paper's tables; a string separated by commas is a list too.
    seeds : int or sequence of int
        N means 0 to N-1.
    choices : mapping
        What all runs share, as :func:`znorm.lab.resolve` takes it.

    Raises
    ------
    ConfigurationError
        Naming the argument that is not valid.
    """
    if isinstance(methods, str):
        methods = [name.strip() for name in methods.split(",") if name.strip()]
    chosen = list(METHODS) if methods is None else list(methods)
    if not chosen:
        raise ConfigurationError("methods: give at least one")
    for method in chosen:
        lookup("method", method, METHODS)
    for key in ("method", "seed"):
        if key in choices:
            raise ConfigurationError(f"set: {key} is what a comparison varies; use {key}s")
    unique = dict.fromkeys((seed, method) for seed in _seeds(seeds) for method in chosen)
    return [resolve({**choices, "method": method, "seed": seed}) for seed, method in unique]


def _seeds(seeds: int | Sequence[int]) -> list[int]:
    if isinstance(seeds, bool) or not isinstance(seeds, int | Sequence):
        raise ConfigurationError(f"seeds: expected a number or a list of numbers, found {seeds!r}")
    numbers = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not numbers:
        raise ConfigurationError(f"seeds: give at least one, found {seeds!r}")
    for seed in numbers:
        if not isinstance(seed, int) or seed < 0:
            raise ConfigurationError(f"seeds: expected whole numbers from 0, found {seed!r}")
    return numbers


def compare(
    *,
    task: str = "pcam_mini",
    model: str | None = None,
    methods: Sequence[str] | None = None,
    seeds: int | Sequence[int] = 3,
    epochs: int | None = None,
    optimizer: str = "adam",
    lr: float | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    deterministic: bool = False,
    limit: int | None = None,
    set: Mapping[str, Any] | None = None,
    out: PathLike = "runs",
    display: Display | None = None,
) -> list[Run]:
    """Train methods on one task and model over seeds, all else equal, and write the report.

    For one seed every method starts from the same weights and sees the same batches in the same
    order. What is there already is not trained again; what was stopped goes on where it stood.

    Parameters
    ----------
    task, model : str
        Names that :func:`znorm.lab.names` lists; by default the built-in data and its model.
    methods : sequence of str, optional
        By default the six of the paper's tables.
    seeds : int or sequence of int
        N means 0 to N-1.
    epochs, lr, batch_size : optional
        By default the task's.
    optimizer, device, precision : str
        ``auto`` takes what is fastest on this machine.
    deterministic : bool
        Ask torch for deterministic algorithms.
    limit : int, optional
        At most so many images of each part; the page then says so.
    set : mapping, optional
        Further keys of the specification, such as ``{"data.augment": "none"}``.
    out : path
        Where run folders and the report go.
    display : Display, optional
        What shows progress; nothing by default.

    Returns
    -------
    list of Run

    Raises
    ------
    ConfigurationError, DataError
        Before anything is trained.
    DiskFullError, Interrupted
        With the state saved where it could be.

    Examples
    --------
    >>> import tempfile
    >>> from znorm import lab
    >>> runs = lab.compare(methods=["znorm"], seeds=1, epochs=1, limit=16, out=tempfile.mkdtemp())
    >>> runs[0].status
    'done'
    """
    choices = {
        "task": task,
        "model": model,
        "epochs": epochs,
        "optimizer": optimizer,
        "learning_rate": lr,
        "batch_size": batch_size,
        "device": device,
        "precision": precision,
        "deterministic": deterministic,
        "data.limit": limit,
        **(set or {}),
    }
    specs = grid(methods, seeds, choices)
    if Path(out).is_dir():
        find(out)  # a folder that the report could not read is said before anything is trained
    runs = [Run.at(out, spec) for spec in specs]
    execute(runs, display or Silent())
    report(out)
    return runs


def run(
    spec: RunSpec | Mapping[str, Any], *, out: PathLike = "runs", display: Display | None = None
) -> Run:
    """Train the one run that a specification describes, or go on with it.

    Parameters
    ----------
    spec : RunSpec or mapping
        Keys as in spec.json; what is missing takes the task's defaults.
    out : path
    display : Display, optional

    Raises
    ------
    ConfigurationError, DataError, DiskFullError, Interrupted
        As :func:`compare` does.
    """
    resolved = spec if isinstance(spec, RunSpec) else resolve(spec)
    one = Run.at(out, resolved)
    execute([one], display or Silent())
    return one


def report(out: PathLike = "runs") -> Path:
    """Write the report of all runs below ``out``: one self-contained page.

    Returns
    -------
    Path
        Of the page.

    Raises
    ------
    DataError
        If there are no runs.
    """
    runs = find(out)
    if not runs:
        raise DataError(f"{out}: no runs in it; znorm compare makes some")
    datasets: dict[tuple[str, DataSpec], Dataset] = {}
    for one in runs:
        _dataset(one.spec, datasets)
    for one in runs:
        floor(out, one.spec, datasets[one.spec.task, one.spec.data])
    return write_page(Path(out), runs, datasets)


def status(out: PathLike = "runs") -> list[dict[str, Any]]:
    """Where each run below ``out`` stands: one dict a run.

    Raises
    ------
    DataError
        If there is no such folder.
    """
    rows = []
    for one in find(out):
        result = one.result or {}
        rows.append(
            {
                "task": one.spec.task,
                "model": one.spec.model,
                "method": one.spec.method,
                "seed": one.spec.seed,
                "status": one.status,
                "epochs_done": len(one.history),
                "epochs": one.spec.epochs,
                "diverged_step": result.get("diverged_step"),
                "error": result.get("error"),
                "metrics": result.get("metrics", {}),
                "folder": str(one.folder),
            }
        )
    return rows


class _Watch:
    """Passes what the loop tells to the display and to the run's log."""

    def __init__(self, one: Run, display: Display, stop: Interruption) -> None:
        self.run, self.display, self.stop = one, display, stop

    def step(self, epoch: int, step: int, steps: int) -> None:
        self.display.step(self.run.spec, epoch, step, steps)

    def epoch(self, entry: dict[str, Any]) -> None:
        self.run.log({"event": "epoch", **entry})
        self.display.epoch(self.run.spec, entry)

    def stop_requested(self) -> bool:
        return self.stop.requested


def execute(runs: Sequence[Run], display: Display) -> None:
    """Train what is not finished yet, in order."""
    datasets: dict[tuple[str, DataSpec], Dataset] = {}
    for one in runs:
        data = _dataset(one.spec, datasets)
        if len(data.train) < 2 or not len(data.test):
            raise ConfigurationError(
                f"task {one.spec.task}: {len(data.train)} training and {len(data.test)} test "
                "images are too few; lower data.validation or raise data.limit"
            )
        # A model that cannot take these images is said before anything is trained.
        build(
            one.spec.model,
            channels=data.train.images.shape[1],
            classes=len(data.classes),
            image_size=min(data.train.images.shape[2:]),
        )
    for one in runs:
        one.announce()
    with Interruption() as stop:
        display.begin(runs)
        try:
            for number, one in enumerate(runs):
                if stop.requested:
                    raise Interrupted
                if one.result is not None:
                    display.run_ends(number, one, "finished before")
                    continue
                with one.claim() as mine:
                    if not mine:
                        display.run_ends(number, one, "another process is at it")
                        continue
                    if one.result is not None:
                        # It was, until a moment ago.
                        display.run_ends(number, one, "finished by another process")
                        continue
                    display.run_begins(number, one)
                    _work(one, datasets[one.spec.task, one.spec.data], display, stop)
                    display.run_ends(number, one)
        finally:
            display.end()


def _work(one: Run, dataset: Dataset, display: Display, stop: Interruption) -> None:
    saved = one.checkpoint()
    one.begin()
    stop.deferring = True
    try:
        watch = _Watch(one, display, stop)
        outcome = train(one.spec, dataset, watch, saved, one.save_checkpoint)
    except DataError as error:
        raise DataError(f"{one.folder}: {error}") from None
    except LabError:
        raise
    except OSError as error:
        # Of the disk or the terminal, not of the run, which can go on from its checkpoint.
        raise DataError(f"{one.folder}: {error}") from error
    except Exception as error:
        # The grid goes on: one model that runs out of memory must not cost the others.
        text = " ".join(str(error).split()) or type(error).__name__
        one.finish(
            {"status": "failed", "error": f"{type(error).__name__}: {text}"[:500], "metrics": {}}
        )
        return
    finally:
        stop.deferring = False
    result: dict[str, Any] = {
        "status": outcome.status,
        "metrics": outcome.metrics,
        "hashes": outcome.hashes,
        "seconds": outcome.seconds,
    }
    if outcome.diverged_step is not None:
        result["diverged_step"] = outcome.diverged_step
    one.finish(result)


def _dataset(spec: RunSpec, known: dict[tuple[str, DataSpec], Dataset]) -> Dataset:
    key = (spec.task, spec.data)
    if key not in known:
        known[key] = tasks.load(spec.task, validation=spec.data.validation, limit=spec.data.limit)
    return known[key]
