"""Scores of class predictions: counts first, then the score.

A score that is undefined, such as the sensitivity where no case is positive, is nan.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = [
    "accuracy",
    "auroc",
    "brier_score",
    "calibration_error",
    "check_classes",
    "confusion_matrix",
    "correct",
    "sensitivity",
    "specificity",
]


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """The number of cases whose largest logit is that of the label.

    Parameters
    ----------
    logits : Tensor of shape (N, classes)
    labels : Tensor of shape (N,), int64

    Examples
    --------
    >>> import torch
    >>> correct(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0]))
    tensor(1)
    """
    return (logits.argmax(1) == labels).sum()


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """The share of correct predictions, float64.

    Parameters
    ----------
    logits : Tensor of shape (N, classes)
    labels : Tensor of shape (N,)

    Examples
    --------
    >>> import torch
    >>> accuracy(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0]))
    tensor(0.5000, dtype=torch.float64)
    """
    return correct(logits, labels).to(torch.float64) / len(labels)


def confusion_matrix(prediction: Tensor, target: Tensor, classes: int) -> Tensor:
    """The number of cases of each class that were predicted as each class.

    Parameters
    ----------
    prediction, target : Tensor of shape (N,), integer or boolean
        Classes from 0 to ``classes - 1``.
    classes : int

    Returns
    -------
    Tensor of shape (classes, classes), int64, on the CPU
        Rows are the truth, columns the prediction.

    Raises
    ------
    TypeError, ValueError
        If one is not a tensor of integers; if the shapes differ or a class is out of range.

    Examples
    --------
    >>> import torch
    >>> confusion_matrix(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), classes=2)
    tensor([[1, 1],
            [0, 1]])
    """
    predicted = check_classes("confusion_matrix", "prediction", prediction, classes)
    true = check_classes("confusion_matrix", "target", target, classes)
    _check_lengths("confusion_matrix", "prediction", predicted, true)
    cells = torch.bincount(true * classes + predicted, minlength=classes * classes)
    return cells.reshape(classes, classes)


def sensitivity(confusion: Tensor) -> float:
    """The share of positive cases that were found, TP / (TP + FN); nan where none is positive.

    Parameters
    ----------
    confusion : Tensor of shape (2, 2)
        As `confusion_matrix` gives it; class 1 is positive.

    Raises
    ------
    ValueError
        If there are not two classes.

    Examples
    --------
    >>> import torch
    >>> sensitivity(torch.tensor([[5, 1], [1, 3]]))
    0.75
    """
    return _recall("sensitivity", confusion, 1)


def specificity(confusion: Tensor) -> float:
    """The share of negative cases that were left alone, TN / (TN + FP); nan where none is negative.

    Parameters
    ----------
    confusion : Tensor of shape (2, 2)
        As of `sensitivity`, whose errors are the same.

    Examples
    --------
    >>> import torch
    >>> specificity(torch.tensor([[3, 1], [1, 5]]))
    0.75
    """
    return _recall("specificity", confusion, 0)


def _recall(owner: str, confusion: Tensor, label: int) -> float:
    if tuple(confusion.shape) != (2, 2):
        raise ValueError(
            f"{owner}: confusion must have shape (2, 2), found {tuple(confusion.shape)}; it is "
            "defined for two classes"
        )
    cases = int(confusion[label].sum())
    return int(confusion[label, label]) / cases if cases else math.nan


def auroc(scores: Tensor, target: Tensor) -> float:
    """Area under the ROC curve: how often a positive case scores above a negative one.

    Exact, from ranks; a tie counts half. It is the Mann-Whitney statistic over the number of pairs.

    Parameters
    ----------
    scores : Tensor of shape (N,), floating point
        Larger means more likely positive; probabilities or logits.
    target : Tensor of shape (N,), integer or boolean
        0 or 1.

    Returns
    -------
    float
        nan where just one class is present, or where a score is nan.

    Raises
    ------
    TypeError, ValueError
        If one is not such a tensor; if the shapes differ or a class is out of range.

    References
    ----------
    Hanley and McNeil, "The meaning and use of the area under a ROC curve", 1982.

    Examples
    --------
    >>> import torch
    >>> auroc(torch.tensor([0.1, 0.4, 0.4, 0.8]), torch.tensor([0, 0, 1, 1]))
    0.875
    """
    values, true = _pair("auroc", "scores", scores, target)
    positives = int(true.sum())
    negatives = len(true) - positives
    if positives == 0 or negatives == 0 or values.isnan().any():
        return math.nan
    _, place, count = torch.unique(values, return_inverse=True, return_counts=True)
    count = count.to(torch.float64)
    rank = (count.cumsum(0) - (count - 1) / 2)[place]  # tied scores share the mean of their ranks
    above = float(rank[true == 1].sum()) - positives * (positives + 1) / 2
    return above / (positives * negatives)


def calibration_error(probabilities: Tensor, target: Tensor, bins: int = 15) -> float:
    """Expected calibration error of the predicted probability of class 1.

    Cases are sorted by probability into bins of equal width over 0 to 1; a value on an edge belongs
    to the bin above it, 1 to the last. In each bin stands the absolute difference between the share
    of positive cases and the mean probability; the result is their mean, each bin weighted by its
    number of cases. It is about class 1, not about the confidence of whichever class was predicted.

    Parameters
    ----------
    probabilities : Tensor of shape (N,), floating point
        From 0 to 1.
    target : Tensor of shape (N,), integer or boolean
        0 or 1.
    bins : int
        1 or more.

    Returns
    -------
    float
        From 0 to 1; nan where there is no case, or where a probability is nan.

    Raises
    ------
    TypeError, ValueError
        If one is not such a tensor; if shapes differ, a class, a probability or ``bins`` is out of
        range.

    References
    ----------
    Naeini, Cooper and Hauskrecht, "Obtaining well calibrated probabilities using Bayesian binning",
    AAAI 2015.

    Examples
    --------
    >>> import torch
    >>> calibration_error(torch.tensor([0.25, 0.25, 1.0]), torch.tensor([0, 1, 1]), bins=2)
    0.16666666666666666
    """
    values, true = _pair("calibration_error", "probabilities", probabilities, target)
    _check_probabilities("calibration_error", values)
    if isinstance(bins, bool) or not isinstance(bins, int):
        raise TypeError(f"calibration_error: bins must be an int, found {bins!r}")
    if bins < 1:
        raise ValueError(f"calibration_error: bins must be 1 or more, found {bins}")
    if len(values) == 0 or values.isnan().any():
        return math.nan
    inner_edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)[1:-1]
    place = torch.bucketize(values, inner_edges, right=True)
    # The difference of the sums of a bin is its weight times the difference of its means.
    gaps = torch.zeros(bins, dtype=torch.float64).index_add(0, place, true - values)
    return float(gaps.abs().sum()) / len(values)


def brier_score(probabilities: Tensor, target: Tensor) -> float:
    """The mean squared difference between the probability of class 1 and what was the case.

    Parameters
    ----------
    probabilities : Tensor of shape (N,), floating point
        From 0 to 1.
    target : Tensor of shape (N,), integer or boolean
        0 or 1.

    Returns
    -------
    float
        From 0 (best) to 1; nan where there is no case, or where a probability is nan.

    Raises
    ------
    TypeError, ValueError
        If one is not such a tensor; if shapes differ, a class or a probability is out of range.

    References
    ----------
    Brier, "Verification of forecasts expressed in terms of probability", 1950, halved as is usual
    for two classes.

    Examples
    --------
    >>> import torch
    >>> brier_score(torch.tensor([0.5, 1.0]), torch.tensor([0, 1]))
    0.125
    """
    values, true = _pair("brier_score", "probabilities", probabilities, target)
    _check_probabilities("brier_score", values)
    return float((values - true).square().mean())


def check_classes(owner: str, name: str, value: Tensor, classes: int) -> Tensor:
    if not isinstance(value, Tensor) or value.is_floating_point() or value.is_complex():
        raise TypeError(
            f"{owner}: {name} must be a tensor of integers, found "
            f"{value.dtype if isinstance(value, Tensor) else type(value).__name__}"
        )
    if value.ndim != 1:
        raise ValueError(f"{owner}: {name} must have shape (N,), found {tuple(value.shape)}")
    labels = value.cpu().to(torch.int64)
    outside = labels[(labels < 0) | (labels >= classes)]
    if len(outside):
        raise ValueError(
            f"{owner}: {name} must hold classes from 0 to {classes - 1}, found {int(outside[0])}"
        )
    return labels


def _pair(owner: str, name: str, scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        raise TypeError(
            f"{owner}: {name} must be a floating point tensor, found "
            f"{scores.dtype if isinstance(scores, Tensor) else type(scores).__name__}"
        )
    if scores.ndim != 1:
        raise ValueError(
            f"{owner}: {name} must have shape (N,), one number a case for class 1, found "
            f"{tuple(scores.shape)}"
        )
    true = check_classes(owner, "target", target, 2)
    _check_lengths(owner, name, scores, true)
    # Contiguous, since torch warns of any other tensor that it puts into bins.
    return scores.detach().cpu().to(torch.float64).contiguous(), true


def _check_lengths(owner: str, name: str, value: Tensor, target: Tensor) -> None:
    if len(value) != len(target):
        raise ValueError(
            f"{owner}: {name} and target must have one length, found {len(value)} and {len(target)}"
        )


def _check_probabilities(owner: str, values: Tensor) -> None:
    outside = values[(values < 0) | (values > 1)]
    if len(outside):
        raise ValueError(
            f"{owner}: probabilities must be from 0 to 1, found {float(outside[0]):g}; take the "
            "softmax or sigmoid of logits first"
        )
