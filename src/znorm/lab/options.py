"""The options of the verbs: each written once, for Python and for the command line.

A verb's options are a frozen dataclass. Its fields are the keyword arguments of the function
(:func:`keywords`), the options of the command line and the keys of a ``--config`` file
(:mod:`znorm.lab.cli`), and, by their ``key``, keys of a specification
(:meth:`SharedOptions.choices`).
"""

# ruff: noqa: RUF009  option() is a field

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, ParamSpec, TypeAlias, TypeVar

from znorm.lab.registry import unknown
from znorm.lab.runs.progress import Display

__all__ = [
    "CompareOptions",
    "PathLike",
    "ReproduceOptions",
    "SharedOptions",
    "fields_of",
    "keywords",
]

PathLike: TypeAlias = str | os.PathLike[str]
P = ParamSpec("P")
R = TypeVar("R")
Chosen = TypeVar("Chosen")


def option(default: Any, help: str | None, *, key: str | None = None) -> Any:
    """A field that is an option.

    Parameters
    ----------
    default : any
        In Python; on the command line an option that is left out is left to this.
    help : str or None
        As the command line has it; None where that does not take the option.
    key : str, optional
        Of a specification, where the option is one.
    """
    return field(default=default, metadata={"help": help, "key": key})


@dataclass(frozen=True, kw_only=True)
class SharedOptions:
    """The options that ``compare`` and ``reproduce`` both take."""

    methods: Sequence[str | Mapping[str, Any]] | str | None = option(
        None, "Separated by commas.  [default: the six of the paper's tables]"
    )
    epochs: int | None = option(None, "[default: the task's]", key="epochs")
    batch_size: int | None = option(None, "[default: the task's]", key="batch_size")
    micro_batch: int | None = option(None, "Images that are in memory at once.", key="micro_batch")
    workers: int | None = option(None, "Threads that read ahead.  [default: as the set needs]")
    device: str = option("auto", "auto, cpu, cuda or mps.  [default: auto]", key="device")
    precision: str = option(
        "auto",
        "auto, float32 or bfloat16.  [default: auto, the model's faster]",
        key="precision",
    )
    deterministic: bool = option(False, "Deterministic algorithms only.", key="deterministic")
    cuda_graph: bool | None = option(
        None,
        "On a GPU, each step as one CUDA graph.  [default: where it is right]",
        key="cuda_graph",
    )
    compile: bool | None = option(
        None, "Train by torch.compile: faster, once that is done.", key="compile"
    )
    jobs: int = option(1, "Runs trained side by side; times then say little.  [default: 1]")
    retry: bool = option(False, "Train runs that failed once more.")
    limit: int | None = option(
        None, "At most N images of each part; every page then says so.", key="data.limit"
    )
    set: Mapping[str, Any] | None = option(None, "Any other key.")
    display: Display | None = option(None, None)

    def choices(self) -> dict[str, Any]:
        """The choices for a specification, by its keys; those of ``set`` come last."""
        chosen = {key: getattr(self, name) for name, key in self.keys().items()}
        return {**chosen, **(self.set or {})}

    @classmethod
    def keys(cls) -> dict[str, str]:
        """The keys of a specification that are options, by the option's name."""
        return {one.name: one.metadata["key"] for one in fields(cls) if one.metadata["key"]}


@dataclass(frozen=True, kw_only=True)
class CompareOptions(SharedOptions):
    """The options of ``compare``."""

    task: str | None = option(
        None, "What to learn.  [default: pcam_mini, the built-in data]", key="task"
    )
    data: PathLike | None = option(
        None,
        "A folder of your own images: a folder for each class, or images and masks.",
        key="data.folder",
    )
    table: PathLike | None = option(
        None, "A CSV file of those: file, label or mask, group, part or fold.", key="data.table"
    )
    folds: int | None = option(
        None, "Test on each of N folds of your own images in turn; a group is in one of them."
    )
    model: str | None = option(None, "Which net.  [default: the task's]", key="model")
    seeds: int | Sequence[int] = option(
        3, "N for seeds 0 to N-1, or a list such as 0,3,7.  [default: 3]"
    )
    optimizer: str | Mapping[str, Any] = option(
        "adam", "adam, adamw, sgd, rmsprop or a class.  [default: adam]", key="optimizer"
    )
    lr: float | None = option(None, "Learning rate.  [default: the task's]", key="learning_rate")
    schedule: str | None = option(
        None, "constant, cosine or multistep:30,35.  [default: the task's]", key="schedule"
    )
    patience: int | None = option(
        None,
        "End a run after N epochs without a better validation score.  [default: never]",
        key="patience",
    )
    best_epoch: bool = option(
        False, "Scores and weights of the epoch best on validation, not the last.", key="best_epoch"
    )
    start: PathLike | None = option(
        None, "A state_dict (.pt, .safetensors) that every run starts from.", key="start"
    )
    worth: float | None = option(
        None, "The smallest gain worth adopting a method, 0.01 for a point.  [default: 0.01]"
    )
    until: str | None = option(
        None, "decided: add seeds, pair by pair, until the question is decided."
    )
    budget: float | None = option(None, "Minutes that --until may take.  [default: no end]")
    tune: int | None = option(
        None, "Trials by which each method gets its own best learning rate and schedule, too."
    )
    sampler: str | None = option(
        None, "Of these trials: random, or tpe, which learns from them.  [default: random]"
    )
    lr_range: Sequence[float] | str | None = option(
        None, "LOW,HIGH: learning rates to try.  [default: a tenth to ten times the shared one]"
    )
    out: PathLike = option("runs", "Folder of the runs.  [default: runs]")


@dataclass(frozen=True, kw_only=True)
class ReproduceOptions(SharedOptions):
    """The options of ``reproduce``."""

    target: str = field(kw_only=False, metadata={"help": None, "key": None})
    scale: str = option("smoke", "smoke, reduced or paper.  [default: smoke]")
    models: Sequence[str] | str | None = option(
        None, "Some of the target's, separated by commas.  [default: all]"
    )
    methods: Sequence[str] | str | None = option(
        None, "Some of the six, separated by commas.  [default: all]"
    )
    seeds: int | Sequence[int] | None = option(
        None, "N for seeds 0 to N-1, or a list.  [default: 3, at scale smoke 1]"
    )
    epochs: int | None = option(None, "Instead of the scale's; not at scale paper.", key="epochs")
    batch_size: int | None = option(
        None, "Instead of the scale's; not at scale paper.", key="batch_size"
    )
    limit: int | None = option(
        None, "At most N images of each part; not at scale paper.", key="data.limit"
    )
    cases: Sequence[str] | str | None = option(
        None, "Test slices to show in Figure 2, too, separated by commas."
    )
    images: bool = option(True, "No pictures of the data on the page.")
    out: PathLike | None = option(None, "[default: runs/paper-SCALE]")

    @property
    def folder(self) -> Path:
        """The folder of the runs: all targets of a scale share one."""
        return Path("runs") / f"paper-{self.scale}" if self.out is None else Path(self.out)


def fields_of(options: type) -> list[Field[Any]]:
    """The options of a verb, those of its own before those that it shares."""
    shared = [one.name for one in fields(SharedOptions)]
    return sorted(fields(options), key=lambda one: one.name in shared)


def keywords(
    options: Callable[P, Chosen],
) -> Callable[[Callable[[Chosen], R]], Callable[P, R]]:
    """Give a function of options these options as keyword arguments.

    Checked by the type checker, shown by ``help``; one that is not there is answered with the
    nearest ones.
    """
    assert isinstance(options, type)
    names = [one.name for one in fields_of(options)]
    parameters = inspect.signature(options).parameters
    signature = inspect.Signature([parameters[name] for name in names])

    def decorate(function: Callable[[Chosen], R]) -> Callable[P, R]:
        @functools.wraps(function)
        def verb(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                signature.bind(*args, **kwargs)
            except TypeError as error:
                hints = (_hint(name, names) for name in kwargs if name not in names)
                text = f"{function.__name__}() {error}"
                raise TypeError("; ".join((text, *hints))) from None
            return function(options(*args, **kwargs))

        result = inspect.signature(function).return_annotation
        shown = signature.replace(return_annotation=result)
        verb.__signature__ = shown  # type: ignore[attr-defined]
        return verb

    return decorate


def _hint(name: str, names: Sequence[str]) -> str:
    return str(unknown("option", name, names)).partition("; ")[2]
