"""Tasks, models and methods by name, with a line about each."""

from __future__ import annotations

from znorm.lab.methods import METHODS
from znorm.lab.models import MODELS
from znorm.lab.registry import lookup
from znorm.lab.tasks import TASKS

__all__ = ["KINDS", "names"]

KINDS = {
    "tasks": {name: task.about for name, task in TASKS.items()},
    "models": {
        **{name: family.about for name, family in MODELS.items()},
        "timm:NAME": "any classifier of timm",
        "torchvision:NAME": "any classifier of torchvision",
        "smp:ARCH/ENCODER": "any segmenter of segmentation_models_pytorch",
        "PACKAGE.MODULE:FUNCTION": "your own, called with channels, classes and image_size",
    },
    "methods": {name: method.about for name, method in METHODS.items()},
}


def names(kind: str) -> dict[str, str]:
    """Each name of a kind, with a line about it.

    Parameters
    ----------
    kind : "tasks", "models" or "methods"

    Raises
    ------
    ConfigurationError
        For another kind.

    Examples
    --------
    >>> from znorm import lab
    >>> lab.names("tasks")["phantom"]
    'built in: synthetic slices of 64x64 pixels with blobs to segment'
    """
    return dict(lookup("kind", kind, KINDS))
