"""The grids of runs behind the paper's tables and figure, at three scales."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from znorm.lab import models, optimizers
from znorm.lab.methods import PUBLISHED
from znorm.lab.spec import RunSpec
from znorm.lab.tasks import TASKS

__all__ = [
    "SCALES",
    "TARGETS",
    "Scale",
    "Target",
    "against_stated",
    "deviations",
    "settings",
]


@dataclass(frozen=True)
class Target:
    """A table or figure: methods on each of these models, on one task.

    Parameters
    ----------
    label, about : str
    task : str
        Its defaults are the settings of its table.
    models : tuple of str
    stand_in : str
        The task that needs no download and is tried where the images are missing.
    methods : tuple of str
    table : str or None
        The paper's table that holds numbers for it.
    one_seed : bool
        Whether one seed is enough, however many are asked for.
    choices : mapping
        Further keys of its specifications.
    """

    label: str
    about: str
    task: str
    models: tuple[str, ...]
    stand_in: str
    methods: tuple[str, ...] = PUBLISHED
    table: str | None = None
    one_seed: bool = False
    choices: Mapping[str, Any] = field(default_factory=dict)


_SEGMENTERS = ("resnet50_unet", "unetplusplus", "attention_unet")

TARGETS: Mapping[str, Target] = {
    "table1": Target(
        "Table 1",
        "six methods on six classifiers, CIFAR-10",
        "cifar10",
        ("resnet56", "resnet101", "resnet152", "densenet121", "densenet169", "mobilenetv2"),
        "pcam_mini",
        table="1",
    ),
    "table2": Target(
        "Table 2",
        "six methods on three classifiers, PatchCamelyon",
        "patchcamelyon",
        ("resnet56", "resnet101", "resnet152"),
        "pcam_mini",
        table="2",
    ),
    "table3": Target(
        "Table 3",
        "six methods on three segmenters, LGG brain MRI",
        "lgg_mri",
        _SEGMENTERS,
        "phantom",
        table="3",
    ),
    "figure2": Target(
        "Figure 2",
        "outlines of each method on test slices, by the runs of Table 3",
        "lgg_mri",
        _SEGMENTERS,
        "phantom",
        one_seed=True,
    ),
    "gradients": Target(
        "Gradients by depth",
        "gradient norms of a deep net with and without shortcuts and normalization",
        "cifar10",
        ("plain56", "resnet56"),
        "pcam_mini",
        methods=("baseline", "znorm"),
        one_seed=True,
        choices={"receipt": True},
    ),
}


@dataclass(frozen=True)
class Scale:
    """The size of the runs of each target.

    Parameters
    ----------
    about : str
        One line.
    result : bool
        Whether what comes out may be read as a result.
    seeds : int
        Where nothing else is asked for.
    choices : mapping
        By task, what differs from its defaults.
    """

    about: str
    result: bool
    seeds: int
    choices: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


SCALES: Mapping[str, Scale] = {
    "smoke": Scale(
        "a few steps of each, to see that everything runs; not a result",
        result=False,
        seeds=1,
        choices={
            "cifar10": {"epochs": 1, "batch_size": 8, "data.limit": 24},
            "patchcamelyon": {"epochs": 1, "batch_size": 8, "data.limit": 24},
            "lgg_mri": {"epochs": 1, "batch_size": 2, "data.limit": 6},
        },
    ),
    # Batches shrink with the images, so that an epoch still has more than a few steps.
    "reduced": Scale(
        "fewer epochs and images, the same code",
        result=True,
        seeds=3,
        choices={
            "cifar10": {"epochs": 10, "batch_size": 64, "data.limit": 10_000},
            "patchcamelyon": {"epochs": 10, "batch_size": 32, "data.limit": 10_000},
            "lgg_mri": {"epochs": 10, "batch_size": 8, "data.limit": 600},
        },
    ),
    "paper": Scale("the paper's settings", result=True, seeds=3),
}


def settings(task: str, scale: Scale, choices: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a task's runs at a scale, the user's choices last.

    A schedule's milestones keep their place in the run: 30 of 50 epochs is 6 of 10.
    """
    chosen = {**scale.choices.get(task, {}), **choices}
    defaults = TASKS[task]
    epochs = chosen.get("epochs", defaults.epochs)
    if "schedule" not in chosen and epochs != defaults.epochs and isinstance(epochs, int):
        chosen["schedule"] = _shrunk(defaults.schedule, defaults.epochs, epochs)
    return chosen


def _shrunk(schedule: str, epochs: int, wanted: int) -> str:
    kind, colon, milestones = schedule.partition(":")
    if not colon:
        return schedule
    places = [round(int(epoch) * wanted / epochs) for epoch in milestones.split(",")]
    reached = [str(place) for place in places if place < wanted]
    return f"{kind}:{','.join(reached)}" if reached else "constant"


def against_stated(spec: RunSpec, task: str) -> list[str]:
    """The settings of a run that are not those that the paper states for a task."""
    stated, differences = TASKS[task], []
    for what, here, there in (
        ("epochs", spec.epochs, stated.epochs),
        ("batches of", spec.batch_size, stated.batch_size),
        ("learning rate", spec.learning_rate, stated.learning_rate),
        ("augmentation", spec.data.augment, stated.augment),
        ("optimizer", spec.optimizer, "adam"),
    ):
        if here != there:
            differences.append(f"{what} {here}, not {there}")
    usual = optimizers.options_of(spec.optimizer, None, 0.0)
    for option, value in spec.optimizer_options.items():
        if usual.get(option) != value:
            differences.append(f"{spec.optimizer}'s {option} {value}")
    if spec.schedule != _shrunk(stated.schedule, stated.epochs, spec.epochs):
        differences.append(f"schedule {spec.schedule}, not {stated.schedule}")
    if spec.data.limit is not None:
        differences.append(f"at most {spec.data.limit:,} images of each part")
    return differences


def deviations(spec: RunSpec, task: str) -> list[str]:
    """The differences of a run from the paper's for a task, as a page tells them.

    Settings that the paper does not state count too, where they are not the task's defaults.
    """
    stated, differences = TASKS[task], []
    if spec.task != task:
        differences.append(f"{TASKS[spec.task].label} stands in for {stated.label}")
    differences += against_stated(spec, task)
    if spec.loss != stated.loss:
        differences.append(f"loss {spec.loss}, not {stated.loss}")
    if spec.patience is not None:
        differences.append(f"an end after {spec.patience} epochs that are no better")
    if spec.start_digest is not None:
        differences.append("weights from a file at the start")
    if spec.best_epoch:
        differences.append("scores of the epoch best on validation")
    if spec.micro_batch is not None:
        differences.append(f"batches in pieces of {spec.micro_batch}")
    usual = models.options_of(spec.model, {})
    for option, value in spec.model_options.items():
        if usual.get(option) != value:
            differences.append(f"{option} {value}")
    return differences
