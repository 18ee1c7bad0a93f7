"""The file that a finished run leaves to predict with: the net's weights, and how it was fed."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from znorm.lab.datasets import Dataset
from znorm.lab.datasets.dataset import RESERVED
from znorm.lab.errors import DataError
from znorm.lab.numbers import is_count, is_number

__all__ = ["Trained", "dump", "load"]

# Pixels on a side that no set comes near.
_LARGEST_SIDE = 1 << 16


@dataclass(frozen=True)
class Trained:
    """A trained net's state, and what it needs to take pictures from elsewhere.

    Parameters
    ----------
    state : dict
        Of ``model.state_dict()``.
    mean, std : Tensor of shape (C,)
        Of the training pixels from 0 to 255, which images are normalized by.
    classes : tuple of str
        The name of each label; of masks, the names of what is not marked and what is.
    outputs : int
        Channels of the net's output.
    image_size : tuple of int
        Height and width.
    threshold : float or None
        The probability of what is marked, or of the second of two classes, that was best on
        validation data; None of several classes, and of runs of earlier versions.
    """

    state: dict[str, Tensor]
    mean: Tensor
    std: Tensor
    classes: tuple[str, ...]
    outputs: int
    image_size: tuple[int, int]
    threshold: float | None = None


def dump(model: nn.Module, dataset: Dataset, threshold: float | None = None) -> bytes:
    """Both as a file holds them."""
    mean, std = dataset.statistics
    content = {
        "state": model.state_dict(),
        "mean": mean,
        "std": std,
        "classes": list(dataset.classes),
        "outputs": dataset.outputs,
        "image_size": list(dataset.image_size),
        "threshold": threshold,
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def load(content: bytes, name: str = "weights.pt") -> Trained:
    """Take apart what :func:`dump` made; ``name`` is the file's in messages.

    Raises
    ------
    DataError
        If it is something else.
    """
    try:
        loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        # A file that was cut off or replaced fails in many ways; all of them mean the same.
        raise _not_weights(name, type(error).__name__) from None
    reason = _why_not(loaded)
    if reason is not None:
        raise _not_weights(name, reason)
    return Trained(
        loaded["state"],
        loaded["mean"].to(torch.float32),
        loaded["std"].to(torch.float32),
        tuple(loaded["classes"]),
        loaded["outputs"],
        tuple(loaded["image_size"]),
        loaded.get("threshold"),
    )


def _not_weights(name: str, reason: str) -> DataError:
    return DataError(f"{name}: not the weights of a run ({reason}); train it again")


def _why_not(loaded: Any) -> str | None:
    """The reason why something is not what :func:`dump` writes, in a few words; None if it is."""
    keys = ("state", "mean", "std", "classes", "outputs", "image_size")
    if not isinstance(loaded, dict) or any(key not in loaded for key in keys):
        return f"no {', '.join(keys)} by name"
    state, classes, size = loaded["state"], loaded["classes"], loaded["image_size"]
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and _is_plain(value) for key, value in state.items()
    ):
        return "state is not tensors by name"
    mean, std = loaded["mean"], loaded["std"]
    # Pictures are read in grey or in colour.
    if not (_is_statistic(mean) and _is_statistic(std) and mean.shape == std.shape):
        return "mean and std are not finite numbers of 1 or 3 channels"
    if not (std > 0).all():
        return "std is not above 0"
    if not isinstance(classes, list | tuple) or len(classes) < 2:
        return "classes are not two or more"
    if not all(isinstance(one, str) and one for one in classes):
        return "classes are not names"
    if len(set(classes)) < len(classes):
        return "classes have a name twice"
    taken = [one for one in classes if one in RESERVED]
    if taken:
        return f"a class is called {taken[0]}, which is a column of its own"
    if not is_count(loaded["outputs"]) or loaded["outputs"] not in (
        (1, 2) if len(classes) == 2 else (len(classes),)
    ):
        return f"outputs do not fit {len(classes)} classes"
    if (
        not isinstance(size, list | tuple)
        or len(size) != 2
        or not all(is_count(side) and side <= _LARGEST_SIDE for side in size)
    ):
        return "image_size is not a height and a width"
    threshold = loaded.get("threshold")
    if threshold is not None and not (is_number(threshold) and 0 < threshold < 1):
        return "threshold is not a probability"
    return None


def _is_plain(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
    )


def _is_statistic(value: Any) -> bool:
    return (
        _is_plain(value)
        and value.is_floating_point()
        and value.shape in ((1,), (3,))
        and bool(value.isfinite().all())
    )
