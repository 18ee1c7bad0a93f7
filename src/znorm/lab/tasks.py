"""Tasks: a data set with a loss, a headline score, and the defaults that suit it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from znorm.lab import models
from znorm.lab.datasets import Dataset, cifar10, lgg_mri, patchcamelyon, pcam_mini, phantom
from znorm.lab.errors import ConfigurationError
from znorm.lab.registry import lookup

if TYPE_CHECKING:
    from znorm.lab.spec import DataSpec

__all__ = ["TASKS", "Task", "load"]

_LOSSES = {
    "classes": ("cross_entropy",),
    "mask": ("tversky", "dice_cross_entropy", "focal_tversky"),
}


@dataclass(frozen=True)
class Task:
    """What is learned.

    Parameters
    ----------
    label, about : str
        As pages show it, and one line on it.
    output : "classes" or "mask"
        What a net gives.
    load : callable (DataSpec) -> Dataset
    resolve : callable (given data keys) -> data keys
        Fills in what depends on the files that are there.
    data_keys : tuple of str
        Of DataSpec, those that the task takes beside ``augment`` and ``limit``.
    model, loss, epochs, batch_size, learning_rate, schedule, augment
        Defaults of a run.
    """

    label: str
    about: str
    output: Literal["classes", "mask"]
    load: Callable[[DataSpec], Dataset]
    resolve: Callable[[Mapping[str, Any]], dict[str, Any]]
    data_keys: tuple[str, ...]
    model: str
    loss: str
    epochs: int
    batch_size: int
    learning_rate: float
    schedule: str = "constant"
    augment: str = "none"

    @property
    def score(self) -> str:
        """The headline, by which the best epoch is chosen on the validation part."""
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
        if loss not in _LOSSES[self.output]:
            raise ConfigurationError(
                f"loss {loss}: {self.label} needs one of {', '.join(_LOSSES[self.output])}"
            )


TASKS: Mapping[str, Task] = {
    "pcam_mini": Task(
        label="PatchCamelyon mini",
        about="built in: 1,914 real pathology patches of 32x32 pixels, tumour or not",
        output="classes",
        load=lambda data: pcam_mini.load(data.validation or 0.0),
        resolve=lambda given: {"validation": given.get("validation", 0.15)},
        data_keys=("validation",),
        model="resnet20",
        loss="cross_entropy",
        # Small batches: as many steps in 4 epochs as batches of 64 take in 8, and as accurate.
        epochs=4,
        batch_size=32,
        learning_rate=1e-3,
        # Without it a net hardly beats colour statistics on so few patches.
        augment="dihedral",
    ),
    "phantom": Task(
        label="Phantom (synthetic)",
        about="built in: synthetic slices of 64x64 pixels with blobs to segment",
        output="mask",
        load=lambda data: phantom.load(),
        resolve=lambda given: {},
        data_keys=(),
        model="attention_unet",
        loss="tversky",
        epochs=4,
        batch_size=16,
        learning_rate=1e-3,
    ),
    "cifar10": Task(
        label="CIFAR-10",
        about="60,000 photographs of 32x32 pixels in ten classes (paper, Table 1)",
        output="classes",
        load=lambda data: cifar10.load(data.train or (), data.test or (), data.validation or 0.0),
        resolve=cifar10.resolve,
        data_keys=("train", "test", "validation"),
        model="resnet56",
        loss="cross_entropy",
        epochs=100,
        batch_size=256,
        learning_rate=1e-3,
    ),
    "patchcamelyon": Task(
        label="PatchCamelyon",
        about="327,680 pathology patches of 96x96 pixels, tumour or not (paper, Table 2)",
        output="classes",
        load=lambda data: patchcamelyon.load(data.layout or "h5", data.validation),
        resolve=patchcamelyon.resolve,
        data_keys=("layout", "validation"),
        model="resnet56",
        loss="cross_entropy",
        epochs=50,
        batch_size=256,
        learning_rate=1e-3,
    ),
    "lgg_mri": Task(
        label="LGG brain MRI",
        about="3,929 brain MRI slices of 256x256 pixels with tumour masks (paper, Table 3)",
        output="mask",
        load=lambda data: lgg_mri.load({k: list(v) for k, v in (data.split or {}).items()}),
        resolve=lgg_mri.resolve,
        data_keys=("split",),
        model="resnet50_unet",
        loss="tversky",
        epochs=50,
        batch_size=128,
        learning_rate=1e-2,
        schedule="multistep:30,35,40,45",
    ),
}


def load(name: str, data: DataSpec) -> Dataset:
    """The data set of a task.

    Raises
    ------
    ConfigurationError, DataError
        For an unknown task; for data that is missing or unreadable.
    """
    return lookup("task", name, TASKS).load(data).limited(data.limit)
