"""Scores of masks from counts of pixels, kept for each case.

The counts of cases can be added, so that the same file gives a score per slice, per patient and
pooled over all pixels. The rule for empty masks is the same in all of them: where neither truth nor
prediction has a pixel a score is 1, where one of them has none it is 0.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from znorm.lab.metrics.masks import Mask, as_masks

__all__ = ["Counts", "Rule", "count", "dice", "dice_of", "iou", "pooled_pixels", "tversky"]

Rule: TypeAlias = Literal["one", "monai", "torchmetrics"]


# eq=False: comparing tensors gives a tensor, not the truth value that == needs.
@dataclass(frozen=True, eq=False)
class Counts:
    """Pixels by truth and prediction, one entry a case.

    Parameters
    ----------
    tp, fp, fn, tn : Tensor of shape (N,), int64, on the CPU
        True positives, false positives, false negatives and true negatives, in pixels.

    Examples
    --------
    >>> import torch
    >>> counts = Counts(*torch.tensor([[2, 0], [1, 0], [1, 0], [5, 9]]))
    >>> counts.dice()
    tensor([0.6667, 1.0000], dtype=torch.float64)
    >>> counts.pooled().tn
    tensor([14])
    """

    tp: Tensor
    fp: Tensor
    fn: Tensor
    tn: Tensor

    def __len__(self) -> int:
        return len(self.tp)

    def dice(self) -> Tensor:
        """2 TP / (2 TP + FP + FN), which is F1; float64 of shape (N,), empty masks as above."""
        return self.tversky(0.5, 0.5)

    def iou(self) -> Tensor:
        """TP / (TP + FP + FN), the Jaccard index; float64 of shape (N,), empty masks as above."""
        return self.tversky(1.0, 1.0)

    def tversky(self, alpha: float = 0.3, beta: float = 0.7) -> Tensor:
        """TP / (TP + alpha FP + beta FN).

        Parameters
        ----------
        alpha, beta : float
            The weight of a false positive and of a false negative, each 0 or more.

        Returns
        -------
        Tensor of shape (N,), float64

        Raises
        ------
        TypeError, ValueError
            If a weight is not a number; if it is negative or not finite.

        References
        ----------
        Tversky, "Features of similarity", 1977; as a loss for masks: Salehi et al., 2017.

        Examples
        --------
        >>> import torch
        >>> Counts(*torch.tensor([[2], [1], [1], [5]])).tversky(alpha=0.5, beta=1.5)
        tensor([0.5000], dtype=torch.float64)
        """
        for name, weight in (("alpha", alpha), ("beta", beta)):
            if isinstance(weight, bool) or not isinstance(weight, Real):
                raise TypeError(
                    f"tversky: {name} must be a number, found {type(weight).__name__} {weight!r}"
                )
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"tversky: {name} must be finite and 0 or more, found {weight!r}")
        # Before the weights come in: a float times an integer tensor would be float32.
        tp, fp, fn = (part.to(torch.float64) for part in (self.tp, self.fp, self.fn))
        denominator = tp + alpha * fp + beta * fn
        # Not "denominator == 0": with a weight of 0 that also holds where just one mask is empty.
        empty = (tp + fp + fn) == 0
        score = torch.where(denominator > 0, tp / denominator, 0.0)
        return torch.where(empty, 1.0, score)

    def pooled(self) -> Counts:
        """All cases as one: Counts of one entry.

        Examples
        --------
        >>> import torch
        >>> Counts(*torch.tensor([[2, 3], [1, 0], [1, 0], [5, 6]])).pooled().tp
        tensor([5])
        """
        return Counts(*(part.sum(0, keepdim=True) for part in self._parts()))

    def by(self, groups: Sequence[Hashable]) -> Counts:
        """The cases of a group as one: an entry a group, in the order of first appearance.

        Parameters
        ----------
        groups : sequence of N hashable values
            The group of each case, such as its patient.

        Raises
        ------
        ValueError
            If there is not one group a case.

        Examples
        --------
        >>> import torch
        >>> Counts(*torch.tensor([[2, 3, 4], [1, 0, 1], [1, 0, 0], [5, 6, 4]])).by("aba").tp
        tensor([6, 3])
        """
        if len(groups) != len(self):
            raise ValueError(
                f"by: groups must have an entry for each of {len(self)} cases, found {len(groups)}"
            )
        place = {group: at for at, group in enumerate(dict.fromkeys(groups))}
        index = torch.tensor([place[group] for group in groups], dtype=torch.int64)
        zeros = torch.zeros(len(place), dtype=torch.int64)
        return Counts(*(zeros.index_add(0, index, part) for part in self._parts()))

    def _parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.tp, self.fp, self.fn, self.tn


def count(prediction: Mask, target: Mask) -> Counts:
    """Count the pixels of each case by truth and prediction.

    Parameters
    ----------
    prediction, target : Tensor or array of shape (N, H, W)
        Boolean masks, or of another type that holds only 0 and 1; on any device.

    Returns
    -------
    Counts
        One entry a case, on the CPU.

    Raises
    ------
    TypeError, ValueError
        If one is not such a mask; if the shapes differ.

    Examples
    --------
    >>> import torch
    >>> count(torch.tensor([[[1, 1, 0, 0]]]), torch.tensor([[[1, 0, 1, 0]]]))
    Counts(tp=tensor([1]), fp=tensor([1]), fn=tensor([1]), tn=tensor([1]))
    """
    masks = as_masks("count", prediction, target)
    predicted, true = (mask.flatten(1).cpu().numpy() for mask in masks)

    # numpy: its count of booleans is about twenty times faster on a CPU than torch's sum.
    def pixels(mask: np.ndarray[Any, Any]) -> Tensor:
        return torch.from_numpy(np.count_nonzero(mask, axis=1))

    tp = pixels(predicted & true)
    fp = pixels(predicted) - tp
    fn = pixels(true) - tp
    return Counts(tp, fp, fn, predicted.shape[1] - tp - fp - fn)


def pooled_pixels(prediction: Tensor, target: Tensor) -> Tensor:
    """The counts of all cases pooled, on the masks' own device, which is not waited for.

    Parameters
    ----------
    prediction, target : bool Tensor of shape (N, H, W)

    Returns
    -------
    int64 Tensor of shape (4,)
        The fields of `Counts`.

    Examples
    --------
    >>> import torch
    >>> pooled_pixels(torch.tensor([[[True, True, False]]]), torch.tensor([[[True, False, False]]]))
    tensor([1, 1, 0, 1])
    """
    if prediction.device.type == "cpu":
        counts = count(prediction, target).pooled()
        return torch.cat([counts.tp, counts.fp, counts.fn, counts.tn])
    return _pixels_by_torch(prediction, target)


def _pixels_by_torch(prediction: Tensor, target: Tensor) -> Tensor:
    tp, predicted, true = (m.sum() for m in (prediction & target, prediction, target))
    return torch.stack([tp, predicted - tp, true - tp, prediction.numel() - predicted - true + tp])


def dice(prediction: Mask, target: Mask, rule: Rule = "one") -> Tensor:
    """Dice of each case, the same number as F1: 2 TP / (2 TP + FP + FN).

    Parameters
    ----------
    prediction, target : Tensor or array of shape (N, H, W)
        Boolean masks, or of another type that holds only 0 and 1.
    rule : "one", "monai" or "torchmetrics"
        What stands for the score where a mask is empty; elsewhere all rules give the same.

        - ``"one"``: both empty 1, one empty 0.
        - ``"monai"``: nan where the truth is empty, whatever was predicted, as MONAI 1.6 gives by
          default (``ignore_empty=True``). Its means leave nan out, so that a false positive on a
          slice without tumour costs nothing.
        - ``"torchmetrics"``: nan where both are empty, 0 where one is, as torchmetrics 1.9 gives
          for Dice. For IoU it gives -1 there, which its mean leaves out just so.

    Returns
    -------
    Tensor of shape (N,), float64

    Raises
    ------
    TypeError, ValueError
        If one is not such a mask; if the shapes differ; if there is no such rule.

    Examples
    --------
    >>> import torch
    >>> dice(torch.tensor([[[1, 1, 0]]]), torch.tensor([[[1, 0, 0]]]))
    tensor([0.6667], dtype=torch.float64)
    >>> dice(torch.tensor([[[1, 1, 0]]]), torch.zeros(1, 1, 3), rule="monai")
    tensor([nan], dtype=torch.float64)
    """
    return dice_of(count(*as_masks("dice", prediction, target)), rule)


def dice_of(counts: Counts, rule: Rule = "one") -> Tensor:
    """As `dice`, of cases that have been counted.

    Examples
    --------
    >>> import torch
    >>> dice_of(Counts(*torch.tensor([[0], [3], [0], [9]])), rule="torchmetrics")
    tensor([0.], dtype=torch.float64)
    """
    return _by_rule("dice", rule, counts, counts.dice())


def iou(prediction: Mask, target: Mask, rule: Rule = "one") -> Tensor:
    """Intersection over union of each case, the Jaccard index: TP / (TP + FP + FN).

    Parameters
    ----------
    prediction, target, rule
        As of `dice`; so are result and errors.

    Examples
    --------
    >>> import torch
    >>> iou(torch.tensor([[[1, 1, 0]]]), torch.tensor([[[1, 0, 0]]]))
    tensor([0.5000], dtype=torch.float64)
    """
    counts = count(*as_masks("iou", prediction, target))
    return _by_rule("iou", rule, counts, counts.iou())


def _by_rule(owner: str, rule: str, counts: Counts, score: Tensor) -> Tensor:
    if rule == "one":
        return score
    if rule == "monai":
        return score.masked_fill(counts.tp + counts.fn == 0, math.nan)
    if rule == "torchmetrics":
        return score.masked_fill(counts.tp + counts.fp + counts.fn == 0, math.nan)
    raise ValueError(f"{owner}: rule must be 'one', 'monai' or 'torchmetrics', found {rule!r}")


def tversky(prediction: Mask, target: Mask, alpha: float = 0.3, beta: float = 0.7) -> Tensor:
    """Tversky index of each case: TP / (TP + alpha FP + beta FN).

    Both masks empty: 1. One empty: 0.

    Parameters
    ----------
    prediction, target
        As of `dice`; so are result and errors.
    alpha, beta : float
        As of `Counts.tversky`.

    Examples
    --------
    >>> import torch
    >>> tversky(torch.tensor([[[1, 1, 0]]]), torch.tensor([[[1, 0, 0]]]), alpha=0.25, beta=0.75)
    tensor([0.8000], dtype=torch.float64)
    """
    return count(*as_masks("tversky", prediction, target)).tversky(alpha, beta)
