"""The scores of runs by name: one line each, and what a page and a table need to know of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from znorm.lab.metrics.classification import (
    accuracy,
    auroc,
    calibration_error,
    check_classes,
    sensitivity,
    specificity,
)
from znorm.lab.metrics.score import ClassPredictions, ClassScore, Column, MaskScore
from znorm.lab.metrics.segmentation import Counts

__all__ = [
    "CLASS_SCORES",
    "DEFINITIONS",
    "LEVELS",
    "MASK_SCORES",
    "classification_scores",
    "columns_of",
    "definition_of",
]

ACCURACY = ClassScore(
    "accuracy",
    "Share of cases whose largest logit is that of the label, from 0 to 1.",
    lambda predictions: float(accuracy(predictions.logits, predictions.labels)),
    column=Column("test_accuracy", "Test accuracy, %", 2, 100.0, optional=False, place=0),
)
LOSS = ClassScore(
    "loss",
    "Mean cross-entropy over the cases, in nats.",
    lambda predictions: float(cross_entropy(predictions.logits, predictions.labels)),
)
SENSITIVITY = ClassScore(
    "sensitivity",
    "TP / (TP + FN), the share of cases of class 1 that were predicted as class 1; left "
    "out where there is none.",
    lambda predictions: sensitivity(predictions.confusion),
    two_classes=True,
    column=Column("test_sensitivity", "Test sensitivity, %", 2, 100.0, place=20),
)
SPECIFICITY = ClassScore(
    "specificity",
    "TN / (TN + FP), the share of cases of class 0 that were predicted as class 0; left "
    "out where there is none.",
    lambda predictions: specificity(predictions.confusion),
    two_classes=True,
    column=Column("test_specificity", "Test specificity, %", 2, 100.0, place=30),
)
AUROC = ClassScore(
    "auroc",
    "Share of pairs of a case of class 1 and a case of class 0 in which the first has the "
    "higher score, a tie counting half; left out where a class is absent.",
    # The difference of the logits: probabilities near 1 would round to ties.
    lambda predictions: auroc(
        predictions.logits[:, 1] - predictions.logits[:, 0], predictions.labels
    ),
    two_classes=True,
    column=Column("test_auroc", "Test AUROC", 4, 1.0, place=10),
)
CALIBRATION_ERROR = ClassScore(
    "calibration_error",
    "Absolute difference between the share of cases of class 1 and their mean predicted "
    "probability in each of 15 bins of equal width, averaged with the cases of each bin as "
    "weights.",
    lambda predictions: calibration_error(predictions.probabilities[:, 1], predictions.labels),
    two_classes=True,
    column=Column("test_calibration_error", "Test calibration error", 4, place=40),
)
F1 = MaskScore(
    "f1",
    "2 TP / (2 TP + FP + FN), the same number as Dice",
    Counts.dice,
    columns=(
        Column("test_f1", "Test F1", 4, optional=False, place=0),
        Column("test_f1_per_patient", "Test F1 per patient", 4, optional=False, place=40),
    ),
)
TVERSKY = MaskScore(
    "tversky",
    "TP / (TP + 0.3 FP + 0.7 FN)",
    Counts.tversky,
    columns=(Column("test_tversky", "Test Tversky", 4, optional=False, place=10),),
)
IOU = MaskScore("iou", "TP / (TP + FP + FN)", Counts.iou)

CLASS_SCORES: dict[str, ClassScore] = {
    "accuracy": ACCURACY,
    "loss": LOSS,
    "sensitivity": SENSITIVITY,
    "specificity": SPECIFICITY,
    "auroc": AUROC,
    "calibration_error": CALIBRATION_ERROR,
}
MASK_SCORES: dict[str, MaskScore] = {
    "f1": F1,
    "tversky": TVERSKY,
    "iou": IOU,
}

LEVELS = {
    "": "of the pixels of all cases pooled",
    "_per_slice": "of each slice, then the mean over all slices",
    "_per_patient": "of the pixels of each patient pooled, then the mean over patients",
}

_EMPTY_COUNTS = "1 where truth and prediction are both empty, 0 where one of them is"
_EMPTY_DISTANCE = (
    "the image's diagonal where one of the two is empty; slices where both are empty are left out"
)
_UNIT = "in pixels, or in the unit of the spacing where one is given"
_BOUNDARY = "distance from a boundary pixel of one mask to the nearest of the other"

# Of masks, what does not follow from counts.
_DISTANCES: Mapping[str, str] = {
    "hausdorff": (
        f"Largest {_BOUNDARY}, {_UNIT}; the mean over the slices in which truth or "
        f"prediction marks something; {_EMPTY_DISTANCE}."
    ),
    "hausdorff_found": (
        f"Largest {_BOUNDARY}, {_UNIT}; the mean over the slices in which truth and prediction "
        "both mark something; slices where either is empty are left out."
    ),
    "hausdorff95": (
        f"95th percentile of the {_BOUNDARY}, the larger of the two directions, {_UNIT}; the "
        f"mean over the slices in which truth or prediction marks something; {_EMPTY_DISTANCE}."
    ),
    "hausdorff_rows": (
        "Row variant, NOT a distance in pixels: the directed Hausdorff distance between the "
        "rows of the two masks taken as points, without unit, the larger of the two "
        "directions; the mean over the slices in which truth or prediction marks something; the "
        "square root of the largest number of mask pixels in a row where one of the two is "
        "empty; slices where both are empty are left out."
    ),
}
_HAUSDORFF = Column("test_hausdorff", "Test Hausdorff", 2, optional=False, place=20)
_HAUSDORFF_ROWS = Column(
    "test_hausdorff_rows", "Test Hausdorff, row variant", 2, optional=False, place=30
)


def definition_of(name: str) -> str | None:
    """The sentence that defines a score, by its name without the prefix of its split."""
    if name in CLASS_SCORES:
        return CLASS_SCORES[name].definition
    for level, how in LEVELS.items():
        score = MASK_SCORES.get(name.removesuffix(level))
        if score is not None and name == f"{score.name}{level}":
            return f"{score.formula}, {how}; {_EMPTY_COUNTS}."
    return _DISTANCES.get(name)


def columns_of(output: str, unit: str = "pixels") -> list[Column]:
    """The columns of the scores of a kind of task, "classes" or "mask"; the unit of distances."""
    if output == "classes":
        return [score.column for score in CLASS_SCORES.values() if score.column is not None]
    counted = [column for score in MASK_SCORES.values() for column in score.columns]
    return [*counted, replace(_HAUSDORFF, title=f"{_HAUSDORFF.title}, {unit}"), _HAUSDORFF_ROWS]


def classification_scores(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Every score of a set of predictions, by name; `DEFINITIONS` says what each is.

    Parameters
    ----------
    logits : Tensor of shape (N, K), floating point
        K is 2 or more; on any device.
    labels : Tensor of shape (N,), integer
        Classes from 0 to K - 1.

    Returns
    -------
    dict of str to float
        By the names of the scores of classes, those of two only where there are two. What is
        undefined (nan) is left out. Computed in float64.

    Raises
    ------
    TypeError, ValueError
        If one is not such a tensor; if shapes do not fit or a class is out of range.

    Examples
    --------
    >>> import torch
    >>> scores = classification_scores(torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 1]))
    >>> scores["accuracy"], scores["auroc"], round(scores["loss"], 4)
    (1.0, 1.0, 0.1269)
    """
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        raise TypeError(
            "classification_scores: logits must be a floating point tensor, found "
            f"{logits.dtype if isinstance(logits, Tensor) else type(logits).__name__}"
        )
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(
            "classification_scores: logits must have shape (N, classes) with two classes or more, "
            f"found {tuple(logits.shape)}"
        )
    classes = logits.shape[1]
    values = logits.detach().cpu().to(torch.float64)
    true = check_classes("classification_scores", "labels", labels, classes)
    if len(values) != len(true):
        raise ValueError(
            f"classification_scores: labels must have an entry for each of {len(values)} rows of "
            f"logits, found {len(true)}"
        )
    predictions = ClassPredictions(values, true)
    scores = {
        name: score.compute(predictions)
        for name, score in CLASS_SCORES.items()
        if classes == 2 or not score.two_classes
    }
    return {name: score for name, score in scores.items() if not math.isnan(score)}


_NAMES = (*CLASS_SCORES, *(score + level for level in LEVELS for score in MASK_SCORES), *_DISTANCES)
#: From the name of a score, without the prefix of its split, to one sentence that defines it.
DEFINITIONS: Mapping[str, str] = MappingProxyType(
    {name: sentence for name in _NAMES if (sentence := definition_of(name)) is not None}
)
