"""Scores of class predictions: by hand, and against scikit-learn and torchmetrics."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn
from torch import Tensor
from torchmetrics.functional.classification import binary_calibration_error

from znorm.lab.metrics import (
    accuracy,
    auroc,
    brier_score,
    calibration_error,
    classification_scores,
    confusion_matrix,
    correct,
    sensitivity,
    specificity,
)
from znorm.lab.metrics.scores import CLASS_SCORES


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def floats(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_confusion_matrix_by_hand() -> None:
    # Case 0 and 1 are right; case 2 is of class 2 and predicted as 0; class 1 is never predicted.
    matrix = confusion_matrix(ints(0, 2, 0), ints(0, 2, 2), classes=3)
    assert matrix.dtype == torch.int64
    assert matrix.tolist() == [[1, 0, 0], [0, 0, 0], [1, 0, 1]]
    assert confusion_matrix(ints(), ints(), classes=2).tolist() == [[0, 0], [0, 0]]
    assert confusion_matrix(ints(1) > 0, ints(0), classes=2).tolist() == [[0, 1], [0, 0]]


def test_sensitivity_and_specificity_by_hand() -> None:
    # Truth in rows: of 10 negative cases 9 are left alone, of 4 positive ones 1 is found.
    matrix = torch.tensor([[9, 1], [3, 1]])
    assert sensitivity(matrix) == 1 / 4
    assert specificity(matrix) == 9 / 10
    assert math.isnan(sensitivity(torch.tensor([[9, 1], [0, 0]])))
    assert specificity(torch.tensor([[9, 1], [0, 0]])) == 0.9
    assert math.isnan(specificity(torch.tensor([[0, 0], [3, 1]])))
    with pytest.raises(ValueError, match=r"sensitivity: confusion must have shape \(2, 2\)"):
        sensitivity(torch.zeros(3, 3))


@pytest.mark.parametrize(
    ("scores", "target", "expected"),
    [
        ((0.1, 0.2, 0.8, 0.9), (0, 0, 1, 1), 1),
        ((0.9, 0.8, 0.2, 0.1), (0, 0, 1, 1), 0),
        ((0.5, 0.5, 0.5, 0.5), (0, 1, 0, 1), 0.5),
        # Pairs (positive, negative): 3 above 1 and 2, 2 above 1 and level with 2: 3.5 of 4.
        ((1.0, 2.0, 2.0, 3.0), (0, 0, 1, 1), 3.5 / 4),
        ((0.0, -0.0), (0, 1), 0.5),
        ((-math.inf, math.inf), (0, 1), 1),
        ((0.1, 0.9), (1, 1), math.nan),
        ((0.1, 0.9), (0, 0), math.nan),
        ((0.1, math.nan), (0, 1), math.nan),
        ((), (), math.nan),
    ],
)
def test_auroc_by_hand(scores, target, expected: float) -> None:
    assert auroc(floats(*scores), ints(*target)) == pytest.approx(expected, nan_ok=True, abs=0)


def test_calibration_error_by_hand() -> None:
    # Two bins.  Lower: 0.1, 0.3 with labels 0, 1: share 0.5, mean 0.2, gap 0.3, 2 of 5 cases.
    # Upper: 0.5, 0.8, 1.0 with labels 0, 1, 1: share 2/3, mean 2.3/3, gap 0.1, 3 of 5 cases.
    probabilities, labels = floats(0.1, 0.3, 0.5, 0.8, 1.0), ints(0, 1, 0, 1, 1)
    assert calibration_error(probabilities, labels, bins=2) == pytest.approx(0.4 * 0.3 + 0.6 * 0.1)
    # One bin: share 3/5, mean 2.7/5.
    assert calibration_error(probabilities, labels, bins=1) == pytest.approx(0.06)
    # An edge belongs to the bin above: with 0.2 in the first bin of five, the gaps would cancel.
    assert calibration_error(floats(0.0, 0.2), ints(0, 1), bins=5) == pytest.approx(0.4)
    assert calibration_error(floats(0.0, 1.0), ints(0, 1)) == 0
    # Confidently wrong.
    assert calibration_error(floats(0.0, 1.0), ints(1, 0)) == 1
    # About class 1, not about the confidence of the predicted class: 0.1 of class 0 is 0.1 off.
    assert calibration_error(floats(0.1), ints(0)) == pytest.approx(0.1)
    assert math.isnan(calibration_error(floats(), ints()))
    assert math.isnan(calibration_error(floats(math.nan), ints(1)))


def test_brier_score_by_hand() -> None:
    # (0.04 + 0.25 + 0) / 3
    assert brier_score(floats(0.2, 0.5, 1.0), ints(0, 1, 1)) == pytest.approx(0.29 / 3)
    assert math.isnan(brier_score(floats(), ints()))


# Those that are worked out here; test_every_score.py holds what others must keep to.
SCORES = ("accuracy", "loss", "sensitivity", "specificity", "auroc", "calibration_error")


def scored(logits: Tensor, labels: Tensor) -> dict[str, float]:
    scores = classification_scores(logits, labels)
    assert set(scores) <= set(CLASS_SCORES)
    return {name: score for name, score in scores.items() if name in SCORES}


def test_classification_scores_by_hand() -> None:
    # Softmax of (0, log 3) is (1/4, 3/4).  Predictions 1, 1, 0 for labels 1, 0, 0.
    step = math.log(3)
    logits = torch.tensor([[0, step], [0, step], [step, 0]], dtype=torch.float64)
    scores = scored(logits, ints(1, 0, 0))
    assert scores == pytest.approx(
        {
            "accuracy": 2 / 3,
            "loss": -(math.log(3 / 4) + math.log(1 / 4) + math.log(3 / 4)) / 3,
            "sensitivity": 1,
            "specificity": 1 / 2,
            # The positive case is level with one negative and above the other.
            "auroc": 3 / 4,
            # Bin of 3/4: share 1/2, gap 1/4, two cases.  Bin of 1/4: share 0, gap 1/4, one case.
            "calibration_error": 1 / 4,
        }
    )
    assert all(type(score) is float for score in scores.values())


def test_what_is_undefined_is_left_out() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    assert set(scored(logits, ints(1, 1))) == {
        *("accuracy", "loss", "sensitivity", "calibration_error")
    }
    assert set(scored(torch.eye(3), ints(0, 1, 2))) == {"accuracy", "loss"}
    assert classification_scores(logits[:0], ints()) == {}
    assert "loss" not in classification_scores(logits * math.nan, ints(0, 1))


def test_scores_near_certainty_keep_their_order() -> None:
    # Both probabilities round to 1 in float64; the logits still tell them apart.
    logits = torch.tensor([[0.0, 50.0], [0.0, 60.0]])
    assert classification_scores(logits, ints(0, 1))["auroc"] == 1


def test_loss_is_computed_in_float64() -> None:
    logits = torch.randn(4096, 2, generator=torch.Generator().manual_seed(0)).to(torch.float16)
    labels = (torch.arange(4096) % 2).to(torch.int16)
    double = logits.double().log_softmax(1)[torch.arange(4096), labels.long()]
    assert classification_scores(logits, labels)["loss"] == pytest.approx(
        -float(double.mean()), rel=1e-14
    )


def test_correct_and_accuracy() -> None:
    logits = torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 5.0]])
    assert int(correct(logits, ints(0, 0, 1))) == 2
    assert float(accuracy(logits, ints(0, 0, 1))) == 2 / 3


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Probabilities, ties among them, and labels of two classes, both present."""
    size = draw(st.integers(2, 30))
    probability = st.one_of(st.floats(0, 1, width=32), st.sampled_from([0.0, 0.3, 0.5, 1.0]))
    probabilities = draw(st.lists(probability, min_size=size, max_size=size))
    labels = draw(st.lists(st.integers(0, 1), min_size=size, max_size=size))
    return floats(*probabilities), ints(0, 1, *labels[2:])


@settings(deadline=None, max_examples=50)
@given(cases(), st.integers(1, 20))
def test_against_libraries(case: tuple[Tensor, Tensor], bins: int) -> None:
    probabilities, target = case
    assert auroc(probabilities, target) == pytest.approx(
        sklearn.roc_auc_score(target, probabilities), abs=1e-12
    )
    assert brier_score(probabilities, target) == pytest.approx(
        sklearn.brier_score_loss(target, probabilities), abs=1e-12
    )
    # On an edge of two bins the rounding of the edge decides, so these are kept off the edges.
    inside = ((probabilities * bins).floor().clamp(max=bins - 1) + 0.25 + probabilities / 2) / bins
    assert calibration_error(inside, target, bins) == pytest.approx(
        float(binary_calibration_error(inside, target, n_bins=bins, norm="l1")), abs=1e-6
    )


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 5), st.integers(1, 30), st.integers(0, 2**32))
def test_scores_against_scikit_learn(classes: int, size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(size, classes, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (size,), generator=generator)
    found = logits.argmax(1)
    matrix = sklearn.confusion_matrix(labels, found, labels=range(classes))
    assert confusion_matrix(found, labels, classes).tolist() == matrix.tolist()

    expected = {
        "accuracy": sklearn.accuracy_score(labels, found),
        "loss": sklearn.log_loss(labels, logits.softmax(1), labels=range(classes)),
    }
    if classes == 2:
        # recall_score of a class is nan where it has no case.
        options = {"zero_division": np.nan}
        expected["sensitivity"] = sklearn.recall_score(labels, found, pos_label=1, **options)
        expected["specificity"] = sklearn.recall_score(labels, found, pos_label=0, **options)
        probabilities = logits.softmax(1)[:, 1]
        if len(labels.unique()) == 2:
            expected["auroc"] = sklearn.roc_auc_score(labels, probabilities)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a copy that it makes
            expected["calibration_error"] = float(binary_calibration_error(probabilities, labels))
    expected = {name: value for name, value in expected.items() if not math.isnan(value)}
    assert scored(logits, labels) == pytest.approx(expected, rel=1e-6, abs=1e-6)


HALF = floats(0.5, 0.5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: auroc([0.5], ints(1)),
            TypeError,
            "auroc: scores must be a floating .* found list",
        ),
        (lambda: auroc(ints(1), ints(1)), TypeError, "scores must be a floating point .*int64"),
        (lambda: auroc(HALF[None], ints(1)), ValueError, r"scores must have shape \(N,\)"),
        (lambda: auroc(HALF, ints(1)), ValueError, "scores and target must have one length"),
        (lambda: auroc(HALF, HALF), TypeError, "target must be a tensor of integers, found torch"),
        (lambda: auroc(HALF, ints(1, 2)), ValueError, "target must hold classes from 0 to 1"),
        (lambda: brier_score(HALF + 1, ints(0, 1)), ValueError, "from 0 to 1, found 1.5; take the"),
        (lambda: calibration_error(-HALF, ints(0, 1)), ValueError, "from 0 to 1, found -0.5"),
        (lambda: calibration_error(HALF, ints(0, 1), 0), ValueError, "bins must be 1 or more"),
        (lambda: calibration_error(HALF, ints(0, 1), 1.5), TypeError, "bins must be an int"),
        (
            lambda: confusion_matrix(ints(3), ints(0), 3),
            ValueError,
            "prediction must hold classes from 0 to 2, found 3",
        ),
        (
            lambda: confusion_matrix(ints(0), ints(-1), 3),
            ValueError,
            "target must hold classes from 0 to 2, found -1",
        ),
        (lambda: classification_scores(ints(1), ints(1)), TypeError, "logits must be a floating"),
        (lambda: classification_scores(HALF, ints(1)), ValueError, "logits must have shape"),
        (lambda: classification_scores(HALF[:, None], ints(0, 0)), ValueError, "two classes or"),
        (
            lambda: classification_scores(torch.eye(2), ints(0)),
            ValueError,
            "labels must have an entry for each of 2 rows of logits, found 1",
        ),
        (lambda: classification_scores(torch.eye(2), ints(0, 2)), ValueError, "labels must hold"),
    ],
)
def test_bad_arguments(call, error, message: str) -> None:
    with pytest.raises(error, match=message):
        call()
