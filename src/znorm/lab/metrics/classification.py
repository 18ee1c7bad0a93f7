"""Scores of class predictions: counts first, then the score."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["accuracy", "correct"]


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """How many of the largest logits are those of the label.

    Parameters
    ----------
    logits : Tensor of shape (N, classes)
    labels : Tensor of shape (N,), int64
    """
    return (logits.argmax(1) == labels).sum()


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """The share of correct predictions, float64.

    Examples
    --------
    >>> import torch
    >>> accuracy(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0]))
    tensor(0.5000, dtype=torch.float64)
    """
    return correct(logits, labels).to(torch.float64) / len(labels)
