"""Tasks by name: one line each; a task's own file says all of it."""

from __future__ import annotations

from znorm.lab.datasets import (
    Dataset,
    DataSpec,
    Task,
    cifar10,
    lgg_mri,
    patchcamelyon,
    pcam_mini,
    phantom,
)
from znorm.lab.datasets.own import tasks as own
from znorm.lab.registry import lookup

__all__ = ["TASKS", "load", "sets"]

TASKS: dict[str, Task] = {
    "pcam_mini": pcam_mini.TASK,
    "phantom": phantom.TASK,
    "cifar10": cifar10.TASK,
    "patchcamelyon": patchcamelyon.TASK,
    "lgg_mri": lgg_mri.TASK,
    "own_classes": own.CLASSES,
    "own_masks": own.MASKS,
}


def sets() -> dict[str, Task]:
    """Those of a known data set, wherever it lies: all but the user's own folders."""
    return {name: task for name, task in TASKS.items() if task not in (own.CLASSES, own.MASKS)}


def load(name: str, data: DataSpec) -> Dataset:
    """The images of a task.

    Raises
    ------
    ConfigurationError, DataError
        For an unknown task; for data that is missing or unreadable.
    """
    return lookup("task", name, TASKS).data.load(data).limited(data.limit)
