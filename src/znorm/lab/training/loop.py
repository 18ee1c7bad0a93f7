"""The training loop: plain torch, resumable to the bit, a step at a time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

import znorm
from znorm.lab.datasets import Dataset, Split
from znorm.lab.errors import DataError, Interrupted
from znorm.lab.methods import make_transform
from znorm.lab.metrics import Cases, ClassCases
from znorm.lab.models.start import new_head
from znorm.lab.optimizers import learning_rate, reads_rate_on_device
from znorm.lab.spec import RunSpec
from znorm.lab.tasks import TASKS
from znorm.lab.training import checkpoint
from znorm.lab.training.checkpoint import Position
from znorm.lab.training.ending import best_of, final_metrics, has_no_patience_left
from znorm.lab.training.evaluation import (
    Evaluator,
    chosen_threshold,
    predict_cases,
    predict_classes,
)
from znorm.lab.training.gradient_statistics import GradientStatistics, clipped_share
from znorm.lab.training.graph import CapturedWork
from znorm.lab.training.pipeline import Pipeline
from znorm.lab.training.sampler import batches
from znorm.lab.training.setup import set_up, start_of
from znorm.lab.training.step import take_step
from znorm.lab.training.surroundings import Surroundings
from znorm.lab.training.weights import dump

__all__ = ["Outcome", "SideBySide", "Watch", "train", "train_by_steps"]

# An interruption loses nothing; a kill loses at most this many seconds of work.
CHECKPOINT_SECONDS = 60.0


class Watch(Protocol):
    """Whoever the loop tells how far it is, and asks whether to stop."""

    def step(self, epoch: int, step: int, steps: int) -> None:
        """A step is done; counts from 0."""

    def epoch(self, entry: dict[str, Any]) -> None:
        """An epoch is done."""

    def note(self, text: str) -> None:
        """Something that whoever reads the run's numbers must know."""

    def stop_requested(self) -> bool:
        """Ask whether to save and stop."""
        ...


@dataclass(frozen=True)
class Outcome:
    """The end of a run.

    Parameters
    ----------
    status : "done" or "diverged"
    metrics : dict
        By the names of the published tables; empty if the run diverged.
    hashes : dict
        Of the images, the initial weights, the batches and the final weights.
    seconds : float
    diverged_step : int or None
        The first step, from 1, whose loss was not finite; the last of its epoch where only weights
        or the evaluation at its end were not.
    cases : Cases or ClassCases or None
        Of masks, the counts and distances of each test image; of classes, the true one, the
        predicted one and what the true one was given.
    weights : bytes or None
        What :func:`znorm.lab.training.weights.dump` makes of the trained net, unless the run
        diverged.
    threads : int or None
        Of torch, on a CPU.
    epochs : int
        Those that it was trained for.
    new_head : str or None
        The module that was drawn anew, since the weights of the start were for other classes.
    """

    status: str
    metrics: dict[str, float]
    hashes: dict[str, str]
    seconds: float
    diverged_step: int | None = None
    cases: Cases | ClassCases | None = None
    weights: bytes | None = None
    threads: int | None = None
    epochs: int = 0
    new_head: str | None = None


@dataclass(frozen=True)
class SideBySide:
    """The stream of one of the runs that take turns on a GPU, and what they share.

    Parameters
    ----------
    stream : torch.cuda.Stream or None
        The run's own; None where there are none.
    copies : dict
        Shared: the images on the GPU, see `Pipeline`.
    """

    stream: torch.cuda.Stream | None
    copies: dict[int, Split]


def train(
    spec: RunSpec,
    dataset: Dataset,
    watch: Watch,
    saved: Iterable[bytes | DataError],
    save: Callable[[bytes], None],
    workers: int | None = None,
) -> Outcome:
    """Train one run to its end; parameters and errors as :func:`train_by_steps`."""
    steps = train_by_steps(spec, dataset, watch, saved, save, workers)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            outcome: Outcome = end.value
            return outcome


def train_by_steps(
    spec: RunSpec,
    dataset: Dataset,
    watch: Watch,
    saved: Iterable[bytes | DataError],
    save: Callable[[bytes], None],
    workers: int | None = None,
    beside: SideBySide | None = None,
) -> Generator[None, None, Outcome]:
    """Train one run to its end, from where it stands, and pause after each step.

    Between two steps nothing of torch's settings is the run's, so that others can have their turn.

    Parameters
    ----------
    spec : RunSpec
    dataset : Dataset
    watch : Watch
    saved : iterable of bytes or DataError
        The run's checkpoints, the last one first; in place of one an error where it is damaged.
    save : callable
        Stores a checkpoint; it must replace the last one atomically.
    workers : int, optional
        Loader threads; by default some where the images are mapped from a file.
    beside : SideBySide, optional
        Where others are trained in turns with it.

    Raises
    ------
    Interrupted
        If ``watch`` asked to stop; a checkpoint was saved before.
    DataError
        If there are checkpoints and none can be gone on from: they are damaged, or of other images.
    """
    device = torch.device(spec.device)
    stream = None if beside is None else beside.stream
    surroundings = Surroundings(device, stream, tries_algorithms=not spec.deterministic)
    with surroundings:
        run = _begin(spec, dataset, watch, saved, save, workers, beside)
        steps = run.run()
    try:
        while True:
            with surroundings:
                try:
                    next(steps)
                except StopIteration as end:
                    outcome: Outcome = end.value
                    return outcome
            run.pause_clock()
            yield
            run.resume_clock()
    finally:
        steps.close()


def _begin(
    spec: RunSpec,
    dataset: Dataset,
    watch: Watch,
    saved: Iterable[bytes | DataError],
    save: Callable[[bytes], None],
    workers: int | None,
    beside: SideBySide | None,
) -> _Loop:
    """The run where it stands, and torch's settings as it needs them."""
    device = torch.device(spec.device)
    torch.manual_seed(spec.seed)
    model, optimizer = set_up(spec, dataset)
    position = _resumed(saved, model, optimizer, watch)
    if position is None:
        position = Position(initial_weights=checkpoint.hash_weights(model))
    if position.data not in ("", dataset.fingerprint):
        raise DataError(
            "the images are not those that the run began with, and would be mixed into it; put "
            "them back, or move the run's folder away"
        )
    position.data = dataset.fingerprint
    if device.type == "cpu":
        _keep_threads(position, watch)
    for entry in position.history:
        watch.epoch(entry)
    torch.use_deterministic_algorithms(spec.deterministic)
    pipeline = Pipeline(
        dataset,
        spec.data.augment,
        spec.seed,
        device,
        workers,
        micro_batch=spec.micro_batch,
        copies=None if beside is None else beside.copies,
    )
    return _Loop(spec, pipeline, model, optimizer, position, watch, save)


def _resumed(
    saved: Iterable[bytes | DataError],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    watch: Watch,
) -> Position | None:
    """The position of the last checkpoint that is whole; None if there is none at all."""
    problems: list[str] = []
    for content in saved:
        try:
            if isinstance(content, DataError):
                raise content
            position = checkpoint.load(content, model, optimizer)
        except DataError as error:
            problems.append(str(error))
            continue
        if problems:
            watch.note(f"{problems[0]}; the run goes on from the checkpoint before")
        return position
    if problems:
        raise DataError(f"{problems[0]}; move it away, and the run starts anew")
    return None


def _keep_threads(position: Position, watch: Watch) -> None:
    """As many threads as the run began with: sums in another order have other bits."""
    if not position.threads and (position.epoch or position.step):
        watch.note(
            "the checkpoint is of an earlier version, which did not write down its threads: the "
            "last bits can differ from those of a run that was not stopped"
        )
    position.threads = position.threads or torch.get_num_threads()
    torch.set_num_threads(position.threads)


def _statistics(
    spec: RunSpec, model: nn.Module, optimizer: torch.optim.Optimizer
) -> GradientStatistics | None:
    """The receipts that a run keeps, and those of clips: one that never acts is found out."""
    if spec.receipt:
        transform = make_transform(spec.transform)
        return GradientStatistics(znorm.attach(optimizer, transform, model=model), model)
    links = [make_transform((link,)) for link in spec.transform]
    clips = any(link is not None and link.is_clip for link in links)
    attachment = znorm.attachment_of(optimizer) if clips else None
    return None if attachment is None else GradientStatistics(attachment, model)


class _Loop:
    """One run at work."""

    def __init__(
        self,
        spec: RunSpec,
        pipeline: Pipeline,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        position: Position,
        watch: Watch,
        save: Callable[[bytes], None],
    ) -> None:
        self.spec = spec
        self.pipeline = pipeline
        self.model = model
        # A batch of another size is compiled anew: what is compiled for any size has other bits,
        # and whether it is would depend on where a run was resumed.
        self.trained = cast(
            nn.Module, torch.compile(model, dynamic=False) if spec.compile else model
        )
        self.optimizer = optimizer
        self.position = position
        self.watch = watch
        self.save = save
        self.score = TASKS[spec.task].score
        # These stay on the device until they are needed, so that a step never waits for it.
        self.unread: list[tuple[Tensor, Tensor]] = []
        size = min(spec.batch_size, len(pipeline.dataset.train))
        self.captured = CapturedWork(size) if spec.cuda_graph else None
        # On the device, where captured steps read it anew each time.
        self.rate = None
        if spec.cuda_graph and reads_rate_on_device(optimizer):
            self.rate = torch.zeros((), device=pipeline.device)
        self.evaluator = Evaluator(spec, model, pipeline)
        self.statistics = _statistics(spec, model, optimizer)
        self.new_head = None
        if spec.start_digest is not None:
            outputs = pipeline.dataset.outputs
            self.new_head = new_head(model.state_dict(), start_of(spec), outputs)
        if self.new_head is not None and not (position.epoch or position.step):
            watch.note(
                f"{self.new_head} is drawn anew: the weights that the run starts from are for "
                "another number of classes"
            )
        self.clock = time.perf_counter()
        self.saved_at = self.clock

    def run(self) -> Generator[None, None, Outcome]:
        """Train to the end, and pause after each step and where the device is waited for next."""
        spec, position, dataset = self.spec, self.position, self.pipeline.dataset
        while position.epoch < spec.epochs and not has_no_patience_left(
            position.history, self.score, spec.patience
        ):
            steps = yield from self._train_epoch()
            # Queued before anything is read, so that the device never waits for this.
            scores = {
                name: self.evaluator.queue(split)
                for name, split in (("validation", dataset.validation), ("test", dataset.test))
            }
            yield
            self._read_losses()
            if (step := self._diverged_step(steps)) is not None:
                return self._outcome("diverged", {}, step)
            entry: dict[str, Any] = {
                "epoch": position.epoch + 1,
                "train_loss": math.fsum(position.losses) / len(position.losses),
            }
            for name, read in scores.items():
                entry.update({f"{name}_{key}": value for key, value in read().items()})
            entry["seconds"] = self._seconds()
            if not all(map(math.isfinite, entry.values())):
                # Running statistics overflowed: training goes on finite, evaluation does not.
                return self._outcome("diverged", {}, (position.epoch + 1) * steps)
            if self.statistics is not None:
                self._read_receipt()
                if spec.receipt:
                    entry["receipt"] = self.statistics.of_layers(position.receipt)
                else:
                    entry["clipped"] = clipped_share(position.receipt)
                position.receipt = {}
            position.history.append(entry)
            self._keep_best()
            position.epoch, position.step, position.losses = position.epoch + 1, 0, []
            self._checkpoint()
            self.watch.epoch(entry)
        if position.best is not None:
            self.model.load_state_dict(position.best)
        predict = predict_cases if dataset.test.has_masks else predict_classes
        cases = predict(self.spec, self.model, self.pipeline, dataset.test)
        by_case = cases.scores() if isinstance(cases, Cases) else None
        metrics = final_metrics(
            position.history, self.score, by_case, best_epoch=bool(spec.best_epoch)
        )
        return self._outcome("done", metrics, None, cases)

    def _train_epoch(self) -> Generator[None, None, int]:
        """Train what remains of the epoch, with a pause after each step; the number of all."""
        position, spec = self.position, self.spec
        plan = batches(spec.seed, position.epoch, len(self.pipeline.dataset.train), spec.batch_size)
        self.model.train()
        rate = learning_rate(spec.learning_rate, spec.schedule, position.epoch, spec.epochs)
        self._set_learning_rate(rate)
        for batch in self.pipeline.training_batches(position.epoch, plan[position.step :]):
            self.unread.append((self.step(batch.images, batch.targets), batch.checksum))
            position.step += 1
            self.watch.step(position.epoch, position.step, len(plan))
            if self.watch.stop_requested():
                self._checkpoint()
                raise Interrupted
            if time.perf_counter() - self.saved_at > CHECKPOINT_SECONDS:
                self._checkpoint()
            yield
        return len(plan)

    def _set_learning_rate(self, rate: float) -> None:
        groups = self.optimizer.param_groups
        if self.rate is not None:
            self.rate.fill_(rate)
        elif self.captured is not None and rate != groups[0]["lr"]:
            self.captured.forget()
        for group in groups:
            group["lr"] = rate if self.rate is None else self.rate

    def step(self, images: Tensor, targets: Tensor) -> Tensor:
        """One step; the batch's loss, which is not waited for."""
        if self.captured is None:
            return self._step(images, targets)[0]
        return self.captured.take(self._step, images, targets)[0]

    def _step(self, images: Tensor, targets: Tensor) -> tuple[Tensor]:
        return (take_step(self.spec, self.trained, self.optimizer, images, targets),)

    def _read_losses(self) -> None:
        if not self.unread:
            return
        losses, checksums = zip(*self.unread, strict=True)
        self.position.losses += torch.stack(losses).tolist()
        for checksum in torch.stack(checksums).tolist():
            self.position.saw(checksum)
        self.unread = []

    def _read_receipt(self) -> None:
        if self.statistics is not None:
            self.position.receipt = self.statistics.read(self.position.receipt)

    def _diverged_step(self, steps: int) -> int | None:
        first = self.position.epoch * steps + 1
        for number, loss in enumerate(self.position.losses):
            if not math.isfinite(loss):
                return first + number
        finite = torch.stack([p.isfinite().all() for p in self.model.parameters()]).all()
        return None if finite else first + steps - 1

    def _keep_best(self) -> None:
        """Note how the epoch that has just ended stands: its weights, if it is the best so far."""
        position = self.position
        if self.spec.patience:
            position.batches_by_epoch.append(position.batches[:16])
        best = best_of(position.history, self.score)
        if self.spec.best_epoch and best is position.history[-1]:
            position.best = {
                name: tensor.detach().to("cpu", copy=True)
                for name, tensor in self.model.state_dict().items()
            }

    def pause_clock(self) -> None:
        """Others' turns are not this run's time: what all of them take adds up to the whole."""
        self._seconds()

    def resume_clock(self) -> None:
        self.clock = time.perf_counter()

    def _seconds(self) -> float:
        now = time.perf_counter()
        self.position.seconds += now - self.clock
        self.clock = now
        return self.position.seconds

    def _checkpoint(self) -> None:
        self._read_losses()
        self._read_receipt()
        self._seconds()
        self.save(checkpoint.dump(self.model, self.optimizer, self.position))
        self.saved_at = time.perf_counter()

    def _outcome(
        self,
        status: str,
        metrics: dict[str, float],
        step: int | None,
        cases: Cases | ClassCases | None = None,
    ) -> Outcome:
        hashes = {
            "data": self.position.data,
            "initial_weights": self.position.initial_weights,
            "batches": self.position.batches,
            "final_weights": checkpoint.hash_weights(self.model),
        }
        weights, dataset = None, self.pipeline.dataset
        if status == "done":
            chosen = chosen_threshold(self.spec, self.model, self.pipeline, dataset.validation)
            weights = dump(self.model, dataset, chosen)
        if self.position.batches_by_epoch:
            # Runs of one seed that end at different epochs share those that both had.
            hashes["batches_by_epoch"] = " ".join(self.position.batches_by_epoch)
        threads = self.position.threads or None
        return Outcome(
            status,
            metrics,
            hashes,
            self._seconds(),
            step,
            cases,
            weights,
            threads,
            len(self.position.history),
            self.new_head,
        )
