"""Trains the runs of a grid that are not finished yet, and records how each ended."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from znorm.lab import models
from znorm.lab.datasets import Dataset, Split
from znorm.lab.device import check_compiler, why_not_captured
from znorm.lab.errors import ConfigurationError, DataError, Interrupted, LabError
from znorm.lab.own_code import definitions
from znorm.lab.runs.folder import Run
from znorm.lab.runs.parallel import helped
from znorm.lab.runs.progress import Display
from znorm.lab.runs.turns import NoRoomError, Turns
from znorm.lab.spec import RunSpec
from znorm.lab.training import memory
from znorm.lab.training.interruption import Interruption
from znorm.lab.training.loop import Outcome, SideBySide, train_by_steps
from znorm.lab.training.setup import check_images, load_once, try_model, try_own_code

__all__ = ["execute"]

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
_DETERMINISTIC_CUBLAS = (":4096:8", ":16:8")


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
    """Train the runs that are not finished yet, in order, so many at once.

    On a CPU each of these is a process; on a GPU they take turns in one, or in one for each GPU.

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
        if models.is_external(one.spec.model) or one.spec.start_digest is not None:
            try_model(one.spec, load_once(one.spec, datasets))
    for spec in {
        (one.spec.loss, one.spec.metrics, one.spec.data_key): one.spec for one in runs
    }.values():
        try_own_code(spec, load_once(spec, datasets))
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
    to_train = [one.spec for one in able if one.result is None]
    _prepare_determinism(to_train)
    for device in sorted({spec.device for spec in to_train if spec.compile}):
        check_compiler(device)
    checked()
    for one in able:
        one.announce()
    _tell_what_is_not_captured(able, display)
    processes, side_by_side = _division(able, jobs)
    with _threads_shared(able, processes, display):
        with Interruption() as stop, helped(able, processes, side_by_side, workers):
            turns = Turns(side_by_side, partial(_tell_fewer, display), lambda: stop.at_once)
            hands = _Hands(datasets, display, stop, turns, side_by_side, workers, problems)
            display.begin(able, processes)
            try:
                turns.take(partial(hands.take_part, *numbered) for numbered in enumerate(able))
            finally:
                display.end()
        left = [one for one in able if one.folder not in problems and one.result is None]
        if processes > 1 and left:
            execute(left, display, workers, side_by_side)  # what a helper left that was killed
    for problem in problems.values():
        display.note(str(problem))
    if len(runs) == 1 and problems:
        raise next(iter(problems.values()))


def _division(runs: Sequence[Run], jobs: int) -> tuple[int, int]:
    """The number of processes that train these, and of runs that take turns in each."""
    if not runs or any(one.spec.device != "cuda" for one in runs):
        return jobs, 1
    processes = min(jobs, torch.cuda.device_count())
    return processes, math.ceil(jobs / processes)


def _prepare_determinism(specs: Sequence[RunSpec]) -> None:
    """Set what cuBLAS asks for where deterministic algorithms are: it reads that once.

    Raises
    ------
    ConfigurationError
        If this process has begun to use the GPU already, so that it is too late.
    """
    if not any(spec.deterministic and spec.device == "cuda" for spec in specs):
        return
    if os.environ.get(_CUBLAS) in _DETERMINISTIC_CUBLAS:
        return
    if _CUBLAS in os.environ or torch.cuda.is_initialized():
        raise ConfigurationError(
            f"deterministic: on a GPU torch asks for {_CUBLAS}={_DETERMINISTIC_CUBLAS[0]} in the "
            f"environment from the start, found {os.environ.get(_CUBLAS, 'none')}"
        )
    os.environ[_CUBLAS] = _DETERMINISTIC_CUBLAS[0]


def _tell_fewer(display: Display, count: int) -> None:
    display.note(
        f"the GPU's memory is not enough for {count + 1} runs side by side: it goes on with {count}"
    )


def _tell_what_is_not_captured(runs: Sequence[Run], display: Display) -> None:
    """Say why steps on a GPU are not captured, where the user left it open."""
    told: dict[str, None] = {}
    for spec in (one.spec for one in runs if one.result is None):
        if spec.device == "cuda" and not spec.cuda_graph:
            reason = why_not_captured(spec.model, spec.optimizer, spec.transform, spec.loss)
            if reason is not None:
                told[
                    f"{spec.model} {spec.method}: steps are not captured in a CUDA graph: {reason}"
                ] = None
    for text in told:
        display.note(f"{text}; --cuda-graph captures them")


@dataclass
class _Hands:
    """Whoever trains the runs of a grid in this process, and what that needs."""

    datasets: dict[str, Dataset]
    display: Display
    stop: Interruption
    turns: Turns
    side_by_side: int
    workers: int | None
    problems: dict[Path, DataError]
    # Images on the GPU, which runs side by side share.
    copies: dict[int, Split] = field(default_factory=dict)
    # Of runs that have ended: torch has 32 to give, and hands them out again in turn.
    free_streams: list[torch.cuda.Stream] = field(default_factory=list)

    def take_part(self, number: int, one: Run) -> Generator[None, None, None]:
        """Train one run, with a pause after each step, unless it has ended or others are at it."""
        if self.stop.requested:
            raise Interrupted
        try:
            yield from self._take_part(number, one)
        except DataError as error:
            self.problems[one.folder] = error
            self.display.run_ends(number, one, f"left alone: {error}")

    def _take_part(self, number: int, one: Run) -> Generator[None, None, None]:
        display = self.display
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
            dataset = load_once(one.spec, self.datasets)
            with self.stop.deferred(), self._beside(one.spec) as beside:
                yield from self._train(one, dataset, beside)
            display.run_ends(number, one)

    def _train(
        self, run: Run, dataset: Dataset, beside: SideBySide | None
    ) -> Generator[None, None, None]:
        run.begin()
        try:
            watch = _Watch(run, self.display, self.stop)
            outcome = yield from train_by_steps(
                run.spec,
                dataset,
                watch,
                run.checkpoints(),
                watch.save,
                self.workers,
                beside,
            )
        except DataError as error:
            text = str(error)
            raise DataError(text if str(run.folder) in text else f"{run.folder}: {text}") from None
        except LabError:
            raise
        except OSError as error:
            # Of the disk or the terminal, not of the run, which can go on from its checkpoint.
            raise DataError(f"{run.folder}: {error}") from error
        except (Exception, SystemExit) as error:
            alone = self.turns.alone
            no_memory = memory.is_out_of_memory(error, beside_others=not alone)
            if no_memory and not alone:
                memory.let_go(error)
                raise NoRoomError from None
            if run.spec.device == "cuda" and not no_memory:
                _check_gpu(run, error)
            run.finish(_failed(run.spec, dataset, error, no_memory))
            return
        _finish(run, outcome)

    @contextmanager
    def _beside(self, spec: RunSpec) -> Iterator[SideBySide | None]:
        """The place of a run among others: on a stream that no other one at work has."""
        if self.side_by_side == 1:
            yield None
            return
        if spec.device != "cuda":
            yield SideBySide(None, self.copies)
            return
        stream = self.free_streams.pop() if self.free_streams else torch.cuda.Stream()
        try:
            yield SideBySide(stream, self.copies)
        finally:
            self.free_streams.append(stream)


def _check_gpu(run: Run, error: BaseException) -> None:
    """Raise if the GPU answers nobody any more: then no run has failed, this process has.

    Raises
    ------
    LabError
    """
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        text = " ".join(str(error).split())[:200]
        raise LabError(
            f"{run.folder}: the GPU answers this process no more ({type(error).__name__}: {text}); "
            "the same command in a new process goes on from the last checkpoints"
        ) from error


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


def _net_key(spec: RunSpec) -> tuple[str, str, str, str | None]:
    """The same for runs whose nets are built alike."""
    options = sorted(spec.model_options.items())
    return spec.model, repr(options), spec.data_key, spec.start_digest


def _failed(
    spec: RunSpec, dataset: Dataset, error: BaseException, no_memory: bool
) -> dict[str, Any]:
    """The result of a run that an error ended.

    The grid goes on: one model that runs out of memory must not cost the others.
    """
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]
    if no_memory:
        text = f"{_what_fits(spec, dataset, error)}; {text}"
    reason = "memory" if no_memory else "error"
    return {"status": "failed", "error": text, "reason": reason, "metrics": {}}


def _finish(run: Run, outcome: Outcome) -> None:
    result: dict[str, Any] = {
        "status": outcome.status,
        "metrics": outcome.metrics,
        "hashes": outcome.hashes,
        "seconds": outcome.seconds,
    }
    if run.spec.patience:
        result["epochs"] = outcome.epochs
    if outcome.new_head is not None:
        result["new_head"] = outcome.new_head
    if run.spec.metrics:
        result["definitions"] = definitions(run.spec.metrics)
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
