"""A task: a data set with what is learned from it, and the defaults that suit it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from znorm.lab import models
from znorm.lab.datasets.source import DataSource
from znorm.lab.errors import ConfigurationError
from znorm.lab.own_code import is_own

__all__ = ["Task"]

_LOSSES = {
    "classes": ("cross_entropy",),
    "mask": ("tversky", "dice_cross_entropy", "focal_tversky"),
}


@dataclass(frozen=True)
class Task:
    """A data set, what a net gives for it, and the defaults of a run.

    Parameters
    ----------
    data : DataSource
        Whose name is the task's.
    label, about : str
        As pages show it, and one line on it.
    output : "classes" or "mask"
        What a net gives.
    model, loss, epochs, batch_size, learning_rate, schedule, augment
        Defaults of a run.
    """

    data: DataSource
    label: str
    about: str
    output: Literal["classes", "mask"]
    model: str
    loss: str
    epochs: int
    batch_size: int
    learning_rate: float
    schedule: str = "constant"
    augment: str = "none"

    @property
    def score(self) -> str:
        """The headline, by which the best epoch is chosen on the validation split."""
        return "accuracy" if self.output == "classes" else "f1"

    def check(self, model: str, loss: str) -> None:
        """Refuse a model or a loss of the other kind.

        Raises
        ------
        ConfigurationError
        """
        wanted = {"classes": "a classifier", "mask": "a segmenter"}[self.output]
        if models.output_of(model) not in (self.output, None):
            fitting = [name for name in models.MODELS if models.output_of(name) == self.output]
            raise ConfigurationError(
                f"model {model}: {self.label} needs {wanted}; such as {', '.join(fitting)}"
            )
        # One of the user's own is tried on the images before anything is trained.
        if loss not in _LOSSES[self.output] and not is_own(loss):
            raise ConfigurationError(
                f"loss {loss}: {self.label} needs one of {', '.join(_LOSSES[self.output])}"
            )
