"""Scores, by the names of the published tables.

`DEFINITIONS` says in a sentence how each score is defined, with its unit and its rule for empty
masks.
"""

from __future__ import annotations

from znorm.lab.metrics.cases import Cases
from znorm.lab.metrics.class_cases import ClassCases
from znorm.lab.metrics.classification import (
    accuracy,
    auroc,
    brier_score,
    calibration_error,
    confusion_matrix,
    correct,
    sensitivity,
    specificity,
)
from znorm.lab.metrics.distance import hausdorff, hausdorff_rows
from znorm.lab.metrics.masks import masks_of
from znorm.lab.metrics.scores import DEFINITIONS, classification_scores
from znorm.lab.metrics.segmentation import Counts, count, dice, iou, tversky

__all__ = [
    "DEFINITIONS",
    "Cases",
    "ClassCases",
    "Counts",
    "accuracy",
    "auroc",
    "brier_score",
    "calibration_error",
    "classification_scores",
    "confusion_matrix",
    "correct",
    "count",
    "dice",
    "hausdorff",
    "hausdorff_rows",
    "iou",
    "masks_of",
    "sensitivity",
    "specificity",
    "tversky",
]
