"""Tasks: a data set with a loss, metrics, and the defaults that suit it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from znorm.lab.datasets import Dataset, pcam_mini
from znorm.lab.registry import lookup

__all__ = ["TASKS", "Task", "load"]


@dataclass(frozen=True)
class Task:
    """What is learned.

    Parameters
    ----------
    label, about : str
        As pages show it, and one line on it.
    load : callable (validation share) -> Dataset
    model, epochs, batch_size, learning_rate, augment, validation
        Defaults of a run.
    """

    label: str
    about: str
    load: Callable[[float], Dataset]
    model: str
    epochs: int
    batch_size: int
    learning_rate: float
    augment: str
    validation: float


TASKS: Mapping[str, Task] = {
    "pcam_mini": Task(
        label="PatchCamelyon mini",
        about="built in: 1,914 real pathology patches of 32x32 pixels, tumour or not",
        load=pcam_mini.load,
        model="resnet20",
        # Small batches: as many steps in 4 epochs as batches of 64 take in 8, and as accurate.
        epochs=4,
        batch_size=32,
        learning_rate=1e-3,
        # Without it a net hardly beats colour statistics on so few patches.
        augment="dihedral",
        validation=0.15,
    ),
}


def load(name: str, *, validation: float, limit: int | None) -> Dataset:
    """The data set of a task.

    Raises
    ------
    ConfigurationError, DataError
        For an unknown task; for data that is missing or unreadable.
    """
    return lookup("task", name, TASKS).load(validation).limited(limit)
