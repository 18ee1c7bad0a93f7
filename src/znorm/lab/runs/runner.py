"""Trains the runs of a grid that are not finished yet, and records how each ended."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from znorm.lab import models
from znorm.lab.datasets import Dataset
from znorm.lab.errors import ConfigurationError, DataError, Interrupted, LabError
from znorm.lab.runs.folder import Run
from znorm.lab.runs.parallel import helped
from znorm.lab.runs.progress import Display
from znorm.lab.spec import RunSpec
from znorm.lab.training import memory
from znorm.lab.training.interruption import Interruption
from znorm.lab.training.loop import train
from znorm.lab.training.setup import check_images, load_once, try_model

__all__ = ["execute"]


class _Watch:
    """Passes on the loop's news, to the display and to the run's log."""

    def __init__(self, run: Run, display: Display, stop: Interruption) -> None:
        self.run, self.display, self.stop = run, display, stop

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
    """Train the runs that are not finished yet, in order, in so many processes at once.

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
        check_images(one.spec, load_once(one.spec, datasets))
    for one in {_net_key(one.spec): one for one in runs}.values():
        if models.is_external(one.spec.model):
            try_model(one.spec, load_once(one.spec, datasets))
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
        memory.check(one.spec, load_once(one.spec, datasets), jobs)
    checked()
    for one in able:
        one.announce()
    with _threads_shared(able, jobs, display):
        with Interruption() as stop, helped(able, jobs, workers):
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
        _train(one, load_once(one.spec, datasets), display, stop, workers)
        display.run_ends(number, one)


def _is_tried_again(result: Mapping[str, Any], retry: bool) -> bool:
    """Tell whether a run that failed is trained again: what it lacked may be there now."""
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


def _net_key(spec: RunSpec) -> tuple[str, str, str]:
    """The same for runs whose nets are built alike."""
    return spec.model, repr(sorted(spec.model_options.items())), spec.data_key


def _train(
    run: Run, dataset: Dataset, display: Display, stop: Interruption, workers: int | None
) -> None:
    run.begin()
    stop.deferring = True
    try:
        watch = _Watch(run, display, stop)
        saved = run.checkpoints()
        outcome = train(run.spec, dataset, watch, saved, watch.save, workers)
    except DataError as error:
        text = str(error)
        raise DataError(text if str(run.folder) in text else f"{run.folder}: {text}") from None
    except LabError:
        raise
    except OSError as error:
        # Of the disk or the terminal, not of the run, which can go on from its checkpoint.
        raise DataError(f"{run.folder}: {error}") from error
    except (Exception, SystemExit) as error:
        # The grid goes on: one model that runs out of memory must not cost the others.
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]
        reason = "error"
        if memory.is_out_of_memory(error):
            reason = "memory"
            text = f"{_what_fits(run.spec, dataset, error)}; {text}"
        run.finish({"status": "failed", "error": text, "reason": reason, "metrics": {}})
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
        run.save_cases(outcome.cases)
    if outcome.weights is not None:
        run.save_weights(outcome.weights)
        result["hashes"]["weights_file"] = hashlib.sha256(outcome.weights).hexdigest()
    run.finish(result)


def _what_fits(spec: RunSpec, dataset: Dataset, error: BaseException) -> str:
    try:
        size = memory.fitting_micro_batch(spec, dataset, error)
    except Exception:  # the run's own error is what is to be told
        return "out of memory; --micro-batch takes a batch in pieces"
    if size is None:
        return "out of memory, for two images too; take a smaller model or smaller images"
    return f"out of memory; a step with --micro-batch {size} fits"
