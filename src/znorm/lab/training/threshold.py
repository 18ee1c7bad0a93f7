"""The probability above which a net's output counts as yes, chosen on validation data."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

__all__ = ["best_threshold", "logit"]

_STEPS = 100


def logit(probability: float) -> float:
    """The output of a net for a probability, whose sigmoid it is."""
    return math.log(probability / (1 - probability))


def best_threshold(
    logits: Iterable[Tensor], truths: Iterable[Tensor], score: Literal["accuracy", "dice"]
) -> float:
    """The probability of 0.01, 0.02, ... 0.99 with the highest score, all pieces pooled.

    Of several that are alike the one nearest to one half.

    Parameters
    ----------
    logits : iterable of Tensor
        Of yes, in pieces of any shape.
    truths : iterable of Tensor
        0 and 1, in pieces of the same shapes.
    score : "accuracy" or "dice"

    Examples
    --------
    >>> import torch
    >>> logits, truth = torch.tensor([-2.0, -1.5, -1.0, 1.0]), torch.tensor([0, 0, 1, 1])
    >>> best_threshold([logits], [truth], "dice")
    0.26
    """
    tried = [step / _STEPS for step in range(1, _STEPS)]
    edges = torch.tensor([logit(one) for one in tried], dtype=torch.float64)
    # Of each kind how many are above so many of the thresholds.
    counts = torch.zeros(2, _STEPS, dtype=torch.int64)
    for piece, truth in zip(logits, truths, strict=True):
        above = torch.bucketize(piece.detach().flatten().cpu().double(), edges)
        kinds = truth.flatten().cpu().to(torch.int64)
        counts += (kinds * _STEPS + above).bincount(minlength=2 * _STEPS).view(2, _STEPS)
    fp, tp = counts.flip(1).cumsum(1).flip(1)[:, 1:]
    no, yes = counts.sum(1)
    if score == "dice":
        scores = 2 * tp.double() / (tp + fp + yes).clamp(min=1)
    else:
        scores = (tp + no - fp).double()
    best = scores.max()
    places = [one for one, there in zip(tried, scores, strict=True) if there == best]
    return min(places, key=lambda one: (abs(one - 0.5), one))
