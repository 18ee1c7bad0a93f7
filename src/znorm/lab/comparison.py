"""Runs and grids of runs: made into specifications, trained one after the other, reported."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch

from znorm.lab import models, tasks, trust
from znorm.lab.datasets import Dataset
from znorm.lab.errors import ConfigurationError, DataError, Interrupted, LabError
from znorm.lab.floor import floor
from znorm.lab.helpers import helpers
from znorm.lab.methods import PUBLISHED
from znorm.lab.paper.record import Record
from znorm.lab.progress import Display, Silent
from znorm.lab.registry import unknown
from znorm.lab.reporting.page import write_page
from znorm.lab.spec import RunSpec, resolve
from znorm.lab.store import Damaged, Run, survey
from znorm.lab.training import memory
from znorm.lab.training.interruption import Interruption
from znorm.lab.training.loop import train

__all__ = [
    "check_images",
    "compare",
    "execute",
    "grid",
    "report",
    "run",
    "specifications",
    "status",
]

PathLike: TypeAlias = str | os.PathLike[str]


def grid(
    methods: Sequence[str | Mapping[str, Any]] | str | None,
    seeds: int | Sequence[int],
    choices: Mapping[str, Any],
) -> list[RunSpec]:
    """The specifications of a comparison.

    Methods stand side by side within a seed, so that a grid stopped halfway is balanced.

    Parameters
    ----------
    methods : sequence of str or mapping, str or None
        None for the six of the paper's tables; a string separated by commas is a list too. A
        mapping is a method of the user's own: ``name``, ``transform`` and ``weight_decay``.
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
    chosen = [_method(method) for method in (PUBLISHED if methods is None else methods)]
    for number, method in enumerate(chosen):
        for other in chosen[:number]:
            if method["method"] == other["method"] and method != other:
                raise ConfigurationError(
                    f"methods: {method['method']} is there twice and differs; give one another name"
                )
    if not chosen:
        raise ConfigurationError("methods: give at least one")
    for key in ("method", "seed", "transform", "weight_decay"):
        if choices.get(key) is not None:
            use = "seeds" if key == "seed" else "methods"
            raise ConfigurationError(f"set: {key} is what a comparison varies; use {use}")
    specs: dict[str, RunSpec] = {}
    for seed in _seeds(seeds):
        for method in chosen:
            spec = resolve({**choices, **method, "seed": seed})
            if not specs:
                # What follows from the files that are there is worked out once.
                content = spec.data.model_dump(mode="json")
                choices = {k: v for k, v in choices.items() if not k.startswith("data")}
                choices["data"] = content
            specs.setdefault(spec.canonical(), spec)
    return list(specs.values())


def _method(given: str | Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        return {"method": given}
    for key in given:
        if key not in ("name", "transform", "weight_decay"):
            raise unknown("key of a method", key, ("name", "transform", "weight_decay"))
    if not isinstance(given.get("name"), str):
        raise ConfigurationError(f"methods: a method of your own needs a name, found {given!r}")
    transform = given.get("transform")
    return {
        "method": given["name"],
        "transform": () if transform is None else transform,
        "weight_decay": given.get("weight_decay"),
    }


def _seeds(seeds: int | Sequence[int]) -> list[int]:
    if isinstance(seeds, bool) or not isinstance(seeds, int | Sequence):
        raise ConfigurationError(f"seeds: expected a number or a list of numbers, found {seeds!r}")
    numbers = list(range(min(seeds, 10_001))) if isinstance(seeds, int) else list(seeds)
    if not numbers:
        raise ConfigurationError(f"seeds: give at least one, found {seeds!r}")
    if len(numbers) > 10_000:
        raise ConfigurationError(f"seeds: {len(numbers):,} are too many")
    for seed in numbers:
        if not isinstance(seed, int) or seed < 0:
            raise ConfigurationError(f"seeds: expected whole numbers from 0, found {seed!r}")
    return numbers


def specifications(
    *,
    task: str = "pcam_mini",
    model: str | None = None,
    methods: Sequence[str | Mapping[str, Any]] | str | None = None,
    seeds: int | Sequence[int] = 3,
    epochs: int | None = None,
    optimizer: str | Mapping[str, Any] = "adam",
    lr: float | None = None,
    schedule: str | None = None,
    batch_size: int | None = None,
    micro_batch: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    deterministic: bool = False,
    cuda_graph: bool = False,
    limit: int | None = None,
    set: Mapping[str, Any] | None = None,
) -> list[RunSpec]:
    """The specifications of a comparison; parameters and errors are those of :func:`compare`."""
    choices = {
        "task": task,
        "model": model,
        "epochs": epochs,
        "optimizer": optimizer,
        "learning_rate": lr,
        "schedule": schedule,
        "batch_size": batch_size,
        "micro_batch": micro_batch,
        "device": device,
        "precision": precision,
        "deterministic": deterministic,
        "cuda_graph": cuda_graph or None,
        "data.limit": limit,
        **(set or {}),
    }
    return grid(methods, seeds, choices)


def compare(
    *,
    task: str = "pcam_mini",
    model: str | None = None,
    methods: Sequence[str | Mapping[str, Any]] | str | None = None,
    seeds: int | Sequence[int] = 3,
    epochs: int | None = None,
    optimizer: str | Mapping[str, Any] = "adam",
    lr: float | None = None,
    schedule: str | None = None,
    batch_size: int | None = None,
    micro_batch: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    deterministic: bool = False,
    cuda_graph: bool = False,
    limit: int | None = None,
    set: Mapping[str, Any] | None = None,
    workers: int | None = None,
    jobs: int = 1,
    retry: bool = False,
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
    methods : sequence of str or mapping, optional
        By default the six of the paper's tables. A mapping is a method of your own: ``name``,
        ``transform`` (such as ``[{"ClipValue": {"threshold": 0.1}}, "ZNorm"]``), ``weight_decay``.
    seeds : int or sequence of int
        N means 0 to N-1.
    epochs, lr, schedule, batch_size : optional
        By default the task's.
    micro_batch : int, optional
        Images that are in memory at once; gradients of a batch's pieces add up.
    optimizer : str or mapping
        "adam", "adamw", "sgd", "rmsprop", or any class as "torch.optim.NAdam"; a mapping has
        ``name`` and the class's arguments.
    device, precision : str
        ``auto`` takes what is fastest on this machine.
    deterministic : bool
        Ask torch for deterministic algorithms.
    cuda_graph : bool
        On a GPU, capture each whole step in one CUDA graph: launched at once, not kernel by kernel.
    limit : int, optional
        At most so many images of each part; the page then says so.
    set : mapping, optional
        Further keys of the specification, such as ``{"data.augment": "none"}`` or
        ``{"model_options.stem": "cifar"}``.
    workers : int, optional
        Threads that read ahead, of a set that does not fit in memory.
    jobs : int
        Runs that are trained side by side, each in a process of its own: a small net leaves most of
        a large GPU idle. On a CPU each then has a share of the threads, on whose number the last
        bits depend; a run keeps the number that it began with.
    retry : bool
        Whether runs that failed are trained again, whatever it was; those that ran out of memory or
        of disk are by themselves. Runs that diverged are left as they are.
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
    specs = specifications(
        task=task,
        model=model,
        methods=methods,
        seeds=seeds,
        epochs=epochs,
        optimizer=optimizer,
        lr=lr,
        schedule=schedule,
        batch_size=batch_size,
        micro_batch=micro_batch,
        device=device,
        precision=precision,
        deterministic=deterministic,
        cuda_graph=cuda_graph,
        limit=limit,
        set=set,
    )
    _check_folder(out)
    runs = [Run.at(out, spec) for spec in specs]
    # What this call names is the caller's own; what else lies in the folder is not.
    with trust.trusting(trust.names_of(specs)):
        execute(runs, display or Silent(), workers, jobs, retry=retry)
        report(out)
    return runs


def _check_folder(out: PathLike) -> None:
    """Refuse a place for runs that is a file, before anything is trained."""
    place = Path(out)
    for path in (place, *place.parents):
        if path.exists() or path.is_symlink():
            if not path.is_dir():
                raise ConfigurationError(f"out: {path} is a file; give a folder")
            return


def run(
    spec: RunSpec | Mapping[str, Any],
    *,
    out: PathLike = "runs",
    workers: int | None = None,
    retry: bool = False,
    trust_models: bool = True,
    display: Display | None = None,
) -> Run:
    """Train the one run that a specification describes, or go on with it.

    Parameters
    ----------
    spec : RunSpec or mapping
        Keys as in spec.json; what is missing takes the task's defaults.
    out : path
    workers : int, optional
    retry : bool
        As :func:`compare` takes it.
    trust_models : bool, default True
        Whether a model or optimizer that is code elsewhere is imported. What you write yourself is
        your own; pass False for a specification that somebody has sent, as ``znorm run`` does.
    display : Display, optional

    Raises
    ------
    ConfigurationError, DataError, DiskFullError, Interrupted
        As :func:`compare` does.
    """
    _check_folder(out)
    with trust.trusting(everything=trust_models):
        if not isinstance(spec, RunSpec):
            trust.check(spec)  # before anything that it names is looked up
        resolved = spec if isinstance(spec, RunSpec) else resolve(spec)
        one = Run.at(out, resolved)
        execute([one], display or Silent(), workers, retry=retry)
    return one


def report(out: PathLike = "runs", *, images: bool = True, trust_models: bool = False) -> Path:
    """Write the report of all runs below ``out``: one self-contained page.

    Parameters
    ----------
    out : path
    images : bool
        Whether it shows pictures of the data; without them it may be passed on where the data may
        not.
    trust_models : bool
        Whether models are built that are code elsewhere, by the names that the folder's
        specifications have for them: for pictures of what they predict. Else the names are shown.

    Returns
    -------
    Path
        Of the page.

    Raises
    ------
    DataError
        If there are no runs.
    """
    return write_report(Path(out), images=images, trust_models=trust_models)[0]


def write_report(
    out: Path, *, images: bool, trust_models: bool = False
) -> tuple[Path, list[Damaged]]:
    """As :func:`report`, and what cannot be read."""
    with trust.trusting(everything=trust_models):
        record = Record.read(out)
        runs, damaged = survey(out)
        if not runs and not damaged:
            raise DataError(f"{out}: no runs in it; znorm compare makes some")
        datasets: dict[str, Dataset | DataError] = {}
        for one in runs:
            key = one.spec.data_key
            if key not in datasets:
                # Results that are there are shown, whether or not their images are.
                try:
                    datasets[key] = tasks.load(one.spec.task, one.spec.data)
                except DataError as error:
                    datasets[key] = error
                except ConfigurationError as error:
                    datasets[key] = DataError(str(error))
            held = datasets[key]
            if isinstance(held, Dataset):
                floor(out, one.spec, held)
        return write_page(out, runs, datasets, record, images=images, damaged=damaged), damaged


def status(out: PathLike = "runs") -> list[dict[str, Any]]:
    """Where each run below ``out`` stands: one dict a run.

    Raises
    ------
    DataError
        If there is no such folder.
    """
    runs, damaged = survey(out)
    rows = []
    for one in runs:
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
    nothing = dict.fromkeys(("task", "model", "method", "seed", "epochs", "diverged_step"))
    for other in damaged:
        rows.append(
            {
                **nothing,
                "status": other.status,
                "epochs_done": None,
                "error": other.reason,
                "metrics": {},
                "folder": str(other.folder),
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

    def note(self, text: str) -> None:
        self.run.log({"event": "note", "text": text})
        self.display.note(f"{self.run.folder}: {text}")

    def stop_requested(self) -> bool:
        return self.stop.requested

    def save(self, content: bytes) -> None:
        with self.stop.held_back():
            self.run.save_checkpoint(content)


def execute(
    runs: Sequence[Run],
    display: Display,
    workers: int | None = None,
    jobs: int = 1,
    checked: Callable[[], object] = lambda: None,
    *,
    retry: bool = False,
) -> None:
    """Train what is not finished yet, in order, in so many processes at once.

    ``checked`` is called once all that can be checked has been, before anything is written. A run
    whose files are damaged is left alone, with a word, and the others are trained.

    Raises
    ------
    DataError
        Of a run that is the only one.
    """
    if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1:
        raise ConfigurationError(f"jobs: expected a whole number from 1, found {jobs!r}")
    if workers is not None and (not isinstance(workers, int) or workers < 0):
        raise ConfigurationError(f"workers: expected a whole number from 0, found {workers!r}")
    datasets: dict[str, Dataset] = {}
    for one in runs:
        check_images(one.spec, _dataset(one.spec, datasets))
    for content, one in {_model(one.spec): one for one in runs}.items():
        if models.is_external(content[0]):
            _try_model(one.spec, _dataset(one.spec, datasets))
    problems: dict[Path, DataError] = {}
    for one in runs:
        try:
            one.check_no_link()
            one.check_readable()
        except DataError as error:
            problems[one.folder] = error
    able = [one for one in runs if one.folder not in problems]
    for one in able:
        if one.result is not None and _is_tried_again(one.result, retry):
            one.take_back()
    for one in {one.spec.configuration: one for one in able if one.result is None}.values():
        memory.check(one.spec, _dataset(one.spec, datasets), jobs)
    checked()
    for one in able:
        one.announce()
    with _threads_shared(able, jobs, display):
        with Interruption() as stop, helpers(able, jobs, workers):
            display.begin(able, jobs)
            try:
                for number, one in enumerate(able):
                    if stop.requested:
                        raise Interrupted
                    try:
                        _take_part(number, one, datasets, display, stop, workers)
                    except DataError as error:
                        problems[one.folder] = error
                        display.run_ends(number, one, f"left alone: {error}")
            finally:
                display.end()
        left = [one for one in able if one.folder not in problems and one.result is None]
        if jobs > 1 and left:
            execute(left, display, workers)  # what a helper left that was killed
    for problem in problems.values():
        display.note(str(problem))
    if len(runs) == 1 and problems:
        raise next(iter(problems.values()))


def _take_part(
    number: int,
    one: Run,
    datasets: dict[str, Dataset],
    display: Display,
    stop: Interruption,
    workers: int | None,
) -> None:
    """Train one run of a grid, unless it has ended or another process is at it."""
    if one.result is not None:
        display.run_ends(number, one, _ended_before(one.result))
        return
    with one.claim() as mine:
        if not mine:
            display.run_ends(number, one, "another process is at it")
            return
        if one.result is not None:
            # It was, until a moment ago.
            display.run_ends(number, one, "finished by another process")
            return
        display.run_begins(number, one)
        _work(one, _dataset(one.spec, datasets), display, stop, workers)
        display.run_ends(number, one)


def _is_tried_again(result: Mapping[str, Any], retry: bool) -> bool:
    """Whether a run that failed is to be trained again: what it lacked may be there now."""
    lacked = result.get("reason") == "memory" or "out of memory" in result.get("error", "")
    return result["status"] == "failed" and (retry or lacked)


def _ended_before(result: Mapping[str, Any]) -> str:
    if result["status"] == "failed":
        return f"failed before: {result['error']}; --retry trains it again"
    if result["status"] == "diverged":
        return f"diverged before, at step {result['diverged_step']}"
    return "finished before"


@contextmanager
def _threads_shared(runs: Sequence[Run], jobs: int, display: Display) -> Iterator[None]:
    """On a CPU, an equal share of torch's threads for each job, whatever is left to be done."""
    threads = torch.get_num_threads()
    share = max(1, threads // jobs)
    fresh = [one for one in runs if one.result is None and one.spec.device == "cpu"]
    if jobs == 1 or not fresh:
        yield
        return
    if share != threads:
        display.note(
            f"{jobs} jobs: each run begins with {share} of {threads} threads and keeps them; its "
            "last bits differ from those of a run with another number of threads"
        )
    torch.set_num_threads(share)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def check_images(spec: RunSpec, data: Dataset) -> None:
    """Refuse images that are too few to train on, or that the model cannot take.

    Raises
    ------
    ConfigurationError
        Or for code that is not trusted.
    """
    trust.check(spec)
    if len(data.train) < 2 or not len(data.test):
        raise ConfigurationError(
            f"task {spec.task}: {len(data.train)} training and {len(data.test)} test "
            "images are too few; lower data.validation or raise data.limit"
        )
    models.check(
        spec.model,
        channels=data.channels,
        classes=data.outputs,
        image_size=data.image_size,
        **spec.model_options,
    )


def _model(spec: RunSpec) -> tuple[str, str, str]:
    return spec.model, repr(sorted(spec.model_options.items())), spec.data_key


def _try_model(spec: RunSpec, data: Dataset) -> None:
    """Build a model of another library, and see that what it gives fits the task."""
    model = models.build(
        spec.model,
        channels=data.channels,
        classes=data.outputs,
        image_size=data.image_size,
        **spec.model_options,
    ).eval()
    with torch.no_grad():
        shape = tuple(model(torch.zeros(2, data.channels, *data.image_size)).shape)
    wanted = (2, data.outputs, *data.image_size) if data.train.has_masks else (2, data.outputs)
    if shape != wanted:
        raise ConfigurationError(
            f"model {spec.model}: task {spec.task} needs outputs of shape {wanted} for two images, "
            f"found {shape}"
        )


def _work(
    one: Run, dataset: Dataset, display: Display, stop: Interruption, workers: int | None
) -> None:
    one.begin()
    stop.deferring = True
    try:
        watch = _Watch(one, display, stop)
        saved = one.checkpoints()
        outcome = train(one.spec, dataset, watch, saved, watch.save, workers)
    except DataError as error:
        text = str(error)
        raise DataError(text if str(one.folder) in text else f"{one.folder}: {text}") from None
    except LabError:
        raise
    except OSError as error:
        # Of the disk or the terminal, not of the run, which can go on from its checkpoint.
        raise DataError(f"{one.folder}: {error}") from error
    except (Exception, SystemExit) as error:
        # The grid goes on: one model that runs out of memory must not cost the others.
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]
        reason = "error"
        if memory.is_out_of_memory(error):
            reason = "memory"
            text = f"{_what_fits(one.spec, dataset, error)}; {text}"
        one.finish({"status": "failed", "error": text, "reason": reason, "metrics": {}})
        return
    finally:
        stop.deferring = False
    result: dict[str, Any] = {
        "status": outcome.status,
        "metrics": outcome.metrics,
        "hashes": outcome.hashes,
        "seconds": outcome.seconds,
    }
    if outcome.threads is not None:
        result["threads"] = outcome.threads
    if outcome.diverged_step is not None:
        result["diverged_step"] = outcome.diverged_step
    if outcome.cases is not None:
        one.save_cases(outcome.cases)
    if outcome.weights is not None:
        one.save_weights(outcome.weights)
        result["hashes"]["weights_file"] = hashlib.sha256(outcome.weights).hexdigest()
    one.finish(result)


def _what_fits(spec: RunSpec, dataset: Dataset, error: BaseException) -> str:
    try:
        size = memory.fitting_micro_batch(spec, dataset, error)
    except Exception:  # the run's own error is what is to be told
        return "out of memory; --micro-batch takes a batch in pieces"
    if size is None:
        return "out of memory, for two images too; take a smaller model or smaller images"
    return f"out of memory; a step with --micro-batch {size} fits"


def _dataset(spec: RunSpec, known: dict[str, Dataset]) -> Dataset:
    key = spec.data_key
    if key not in known:
        known[key] = tasks.load(spec.task, spec.data)
    return known[key]
