"""What each score means, in a sentence to print where its figure stands."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["DEFINITIONS"]

_EMPTY_COUNTS = "1 where truth and prediction are both empty, 0 where one of them is"
_EMPTY_DISTANCE = (
    "the image's diagonal where one of the two is empty; slices where both are empty are left out"
)
_UNIT = "in pixels, or in the unit of the spacing where one is given"
_BOUNDARY = "distance from a boundary pixel of one mask to the nearest of the other"

_FORMULAS = {
    "f1": "2 TP / (2 TP + FP + FN), the same number as Dice",
    "tversky": "TP / (TP + 0.3 FP + 0.7 FN)",
    "iou": "TP / (TP + FP + FN)",
}
_LEVELS = {
    "": "of the pixels of all cases pooled",
    "_per_slice": "of each slice, then the mean over all slices",
    "_per_patient": "of the pixels of each patient pooled, then the mean over patients",
}

#: From the name of a score, without the prefix of its part, to one sentence that defines it.
DEFINITIONS: Mapping[str, str] = MappingProxyType(
    {
        "accuracy": "Share of cases whose largest logit is that of the label, from 0 to 1.",
        "loss": "Mean cross-entropy over the cases, in nats.",
        "sensitivity": (
            "TP / (TP + FN), the share of cases of class 1 that were predicted as class 1; left "
            "out where there is none."
        ),
        "specificity": (
            "TN / (TN + FP), the share of cases of class 0 that were predicted as class 0; left "
            "out where there is none."
        ),
        "auroc": (
            "Share of pairs of a case of class 1 and a case of class 0 in which the first has the "
            "higher score, a tie counting half; left out where a class is absent."
        ),
        "calibration_error": (
            "Absolute difference between the share of cases of class 1 and their mean predicted "
            "probability in each of 15 bins of equal width, averaged with the cases of each bin as "
            "weights."
        ),
        **{
            f"{score}{level}": f"{formula}, {how}; {_EMPTY_COUNTS}."
            for level, how in _LEVELS.items()
            for score, formula in _FORMULAS.items()
        },
        "hausdorff": (
            f"Largest {_BOUNDARY}, {_UNIT}; the mean over the slices in which truth or "
            f"prediction has tumour; {_EMPTY_DISTANCE}."
        ),
        "hausdorff_found": (
            f"Largest {_BOUNDARY}, {_UNIT}; the mean over the slices in which truth and prediction "
            "both have tumour; slices where either is empty are left out."
        ),
        "hausdorff95": (
            f"95th percentile of the {_BOUNDARY}, the larger of the two directions, {_UNIT}; the "
            f"mean over the slices in which truth or prediction has tumour; {_EMPTY_DISTANCE}."
        ),
        "hausdorff_rows": (
            "Row variant, NOT a distance in pixels: the directed Hausdorff distance between the "
            "rows of the two masks taken as points, without unit, the larger of the two "
            "directions; the mean over the slices in which truth or prediction has tumour; the "
            "square root of the largest number of mask pixels in a row where one of the two is "
            "empty; slices where both are empty are left out."
        ),
    }
)
