"""What a finished run leaves to predict with: the net's weights, and how it was fed."""

from __future__ import annotations

import io
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from znorm.lab.datasets import Dataset
from znorm.lab.errors import DataError

__all__ = ["Trained", "dump", "load"]


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
    """

    state: dict[str, Tensor]
    mean: Tensor
    std: Tensor
    classes: tuple[str, ...]
    outputs: int
    image_size: tuple[int, int]


def dump(model: nn.Module, dataset: Dataset) -> bytes:
    """Both as a file holds them."""
    mean, std = dataset.statistics
    content = {
        "state": model.state_dict(),
        "mean": mean,
        "std": std,
        "classes": list(dataset.classes),
        "outputs": dataset.outputs,
        "image_size": list(dataset.image_size),
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
        held = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        return Trained(
            held["state"],
            held["mean"],
            held["std"],
            tuple(held["classes"]),
            held["outputs"],
            tuple(held["image_size"]),
        )
    except Exception as error:
        # A file that was cut off or replaced fails in many ways; all of them mean the same.
        raise DataError(
            f"{name}: not the weights of a run ({type(error).__name__}); train it again"
        ) from None
