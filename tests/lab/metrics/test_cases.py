"""Cases kept on disk, and the scores that follow from them, worked out by hand."""

from __future__ import annotations

import csv
import io
import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from znorm.lab.metrics import (
    DEFINITIONS,
    Cases,
    classification_scores,
    dice,
    hausdorff,
    hausdorff_rows,
)


def drawn(*slices: str) -> Tensor:
    """Slices of one row each."""
    return torch.tensor([[[pixel == "#" for pixel in row]] for row in slices])


#                     a/1     a/2     b/1     b/2
TRUTH = drawn("##..", "....", "###.", "....")
PREDICTION = drawn("#..#", "....", "....", "#...")
NAMES = ("a/1", "a/2", "b/1", "b/2")
PATIENTS = ("a", "a", "b", "b")

# Slice a/1: TP, FP, FN, TN 1 each.  From the prediction's columns 0, 3 to the truth's 0, 1: 0 and
# 2; back 0 and 1.  So 2; the 95th percentile of (0, 2) is 1.9; the rows differ in 2 pixels.
# b/1 misses 3 pixels, b/2 has a false one: both get the diagonal of 1 x 4, sqrt(17).
DIAGONAL = math.sqrt(17)
EXPECTED = {
    # TP 1, FP 2, FN 4: 2/8, 1/(1 + 0.6 + 2.8), 1/7.
    "f1": 0.25,
    "tversky": 1 / 4.4,
    "iou": 1 / 7,
    # 1/2 (IoU 1/3), 1 since both are empty, 0, 0.
    "f1_per_slice": 1.5 / 4,
    "tversky_per_slice": 1.5 / 4,
    "iou_per_slice": (1 / 3 + 1) / 4,
    # Patient a: 1, 1, 1 of TP, FP, FN.  Patient b: TP 0.
    "f1_per_patient": 0.25,
    "tversky_per_patient": 0.25,
    "iou_per_patient": 1 / 6,
    # Three slices have tumour somewhere, one has it in both.
    "hausdorff": (2 + 2 * DIAGONAL) / 3,
    "hausdorff_found": 2,
    "hausdorff95": (1.9 + 2 * DIAGONAL) / 3,
    "hausdorff_rows": (math.sqrt(2) + math.sqrt(3) + 1) / 3,
}


def test_scores_by_hand() -> None:
    cases = Cases.of(PREDICTION, TRUTH, NAMES, PATIENTS)
    assert cases.scores() == pytest.approx(EXPECTED)
    assert cases.target_found.tolist() == [True, False, True, False]
    assert cases.prediction_found.tolist() == [True, False, False, True]
    assert cases.hausdorff.tolist() == [2, 0, DIAGONAL, DIAGONAL]
    assert all(type(score) is float for score in cases.scores().values())


def test_cases_hold_what_the_functions_give() -> None:
    generator = np.random.default_rng(0)
    p, t = torch.from_numpy(generator.random((2, 6, 9, 8)) < 0.2)
    cases = Cases.of(p, t, [str(i) for i in range(6)], spacing=(0.5, 2))
    assert cases.counts.dice().tolist() == dice(p, t).tolist()
    assert cases.hausdorff.tolist() == hausdorff(p, t, (0.5, 2)).tolist()
    assert cases.hausdorff95.tolist() == hausdorff(p, t, (0.5, 2), 95).tolist()
    assert cases.hausdorff_rows.tolist() == hausdorff_rows(p, t).tolist()


def test_spacing() -> None:
    scores = Cases.of(PREDICTION, TRUTH, NAMES, spacing=(2, 0.5)).scores()
    # Columns of 0.5: 2 pixels are 1; the diagonal of 1 row of 2 and 4 columns of 0.5 is sqrt(8).
    assert scores["hausdorff_found"] == 1
    assert scores["hausdorff"] == pytest.approx((1 + 2 * math.sqrt(8)) / 3)
    assert scores["hausdorff_rows"] == pytest.approx(EXPECTED["hausdorff_rows"])


def test_what_does_not_apply_is_left_out() -> None:
    alone = Cases.of(PREDICTION, TRUTH, NAMES).scores()
    assert set(EXPECTED) - set(alone) == {name for name in EXPECTED if "per_patient" in name}
    # No slice with tumour in both: the mean over those found is undefined.
    missed = Cases.of(PREDICTION[2:], TRUTH[2:], NAMES[2:]).scores()
    assert "hausdorff_found" not in missed
    assert missed["hausdorff"] == pytest.approx(DIAGONAL)
    # No tumour anywhere.
    empty = Cases.of(TRUTH[1:2], TRUTH[1:2], ["a/2"], ["a"]).scores()
    assert not [name for name in empty if "hausdorff" in name]
    assert set(empty.values()) == {1.0}


def test_join() -> None:
    cases = Cases.of(PREDICTION, TRUTH, NAMES, PATIENTS)
    parts = [
        Cases.of(PREDICTION[part], TRUTH[part], NAMES[part], PATIENTS[part])
        for part in (slice(0, 3), slice(3, 4))
    ]
    joined = Cases.join(parts)
    assert joined.rows() == cases.rows()
    assert joined.scores() == cases.scores()
    # The slices of a patient need not stand together.
    order = [2, 0, 3, 1]
    mixed = Cases.of(
        PREDICTION[order], TRUTH[order], [NAMES[i] for i in order], [PATIENTS[i] for i in order]
    )
    assert mixed.scores() == pytest.approx(EXPECTED)
    with pytest.raises(ValueError, match="there must be a part, found none"):
        Cases.join([])
    with pytest.raises(ValueError, match="found 1 of 2 with patients"):
        Cases.join([parts[0], Cases.of(PREDICTION[3:], TRUTH[3:], NAMES[3:])])


@pytest.mark.parametrize("patients", [PATIENTS, None])
def test_rows_give_the_scores_again(patients: tuple[str, ...] | None) -> None:
    cases = Cases.of(PREDICTION, TRUTH, NAMES, patients, spacing=(0.1, 0.7))
    rows = cases.rows()
    assert list(rows[0]) == [
        *("name", "patient", "tp", "fp", "fn", "tn"),
        *("hausdorff", "hausdorff95", "hausdorff_rows"),
    ]
    assert rows[2]["fn"] == 3
    assert rows[2]["patient"] == (patients and "b")

    from_json = Cases.from_rows(json.loads(json.dumps(rows)))
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)
    text.seek(0)
    from_csv = Cases.from_rows(csv.DictReader(text))
    for read in (from_json, from_csv):
        assert read.scores() == cases.scores()
        assert read.rows() == rows
        assert read.patients == patients


ROW = Cases.of(PREDICTION[:1], TRUTH[:1], ["x"], ["p"]).rows()[0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "there must be a row"),
        ([ROW, {k: v for k, v in ROW.items() if k != "fn"}], "row 1 must have fn, found name"),
        ([ROW | {"tp": "many"}], "tp of row 0 must be a finite int of 0 or more, found 'many'"),
        ([ROW | {"tp": 3.7}], "tp of row 0 must be a finite int .* found 3.7"),
        ([ROW | {"tn": -1}], "tn of row 0 .* found -1"),
        ([ROW, ROW | {"hausdorff": "nan"}], "hausdorff of row 1 must be a finite float .* 'nan'"),
        ([ROW | {"hausdorff95": None}], "hausdorff95 of row 0 .* found None"),
        ([ROW, ROW | {"patient": ""}], r"found 1 of 2 \(row 1 names none\)"),
    ],
)
def test_bad_rows(rows, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Cases.from_rows(rows)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((PREDICTION[0], TRUTH, NAMES), ValueError, r"prediction must have shape \(N, H, W\)"),
        ((PREDICTION[:0], TRUTH[:0], ()), ValueError, "there must be a case"),
        ((PREDICTION, TRUTH, NAMES[:3]), ValueError, "names must have .* each of 4 cases, found 3"),
        ((PREDICTION, TRUTH, "abcd"), TypeError, "names must be a sequence of texts"),
        ((PREDICTION, TRUTH, NAMES, [1, 2, 3, 4]), TypeError, "patients must be a sequence of"),
        ((PREDICTION, TRUTH, NAMES, ["a"]), ValueError, "patients must have a text for each of 4"),
        ((PREDICTION, TRUTH, NAMES, ["a", "", "b", "b"]), ValueError, "patients must not hold an"),
    ],
)
def test_bad_arguments(arguments, error, message: str) -> None:
    with pytest.raises(error, match=f"^Cases.of: {message}"):
        Cases.of(*arguments)


def test_every_score_has_a_definition_and_every_definition_a_score() -> None:
    classes = classification_scores(torch.eye(2), torch.tensor([0, 1]))
    assert set(DEFINITIONS) == {*EXPECTED, *classes}
    for sentence in DEFINITIONS.values():
        assert sentence.endswith(".")
        assert "\n" not in sentence
        assert "  " not in sentence
    for name in EXPECTED:
        assert "empty" in DEFINITIONS[name]
    units = {name: "in pixels" in DEFINITIONS[name] for name in EXPECTED if "hausdorff" in name}
    assert all(units.values())
    assert "NOT a distance in pixels" in DEFINITIONS["hausdorff_rows"]


# Two labels on a row of six pixels, by hand: of a, TP, FP, FN are 1, 1, 1 and of b 1, 0, 1; in the
# second case there is no a at all and of b TP 2.
LABELLED_TRUTH = torch.tensor([[[1, 1, 2, 2, 0, 0]], [[0, 0, 2, 2, 0, 0]]], dtype=torch.uint8)
LABELLED = torch.tensor([[[1, 0, 2, 1, 0, 0]], [[0, 0, 2, 2, 0, 0]]], dtype=torch.uint8)


def test_labels_each_have_counts_and_a_score_is_their_mean() -> None:
    cases = Cases.of(LABELLED, LABELLED_TRUTH, ["x", "y"], ["p", "p"], labels=["a", "b"])
    counts = [
        (row["name"], row["label"], row["tp"], row["fp"], row["fn"], row["tn"])
        for row in cases.rows()
    ]
    assert counts == [
        ("x", "a", 1, 1, 1, 3),
        ("y", "a", 0, 0, 0, 6),
        ("x", "b", 1, 0, 1, 4),
        ("y", "b", 2, 0, 0, 4),
    ]
    # Of a 2/4, of b 6/7.
    assert cases.scores()["f1"] == pytest.approx((1 / 2 + 6 / 7) / 2)
    assert cases.scores()["f1_per_slice"] == pytest.approx(((1 / 2 + 1) / 2 + (2 / 3 + 1) / 2) / 2)
    assert cases.dice().tolist() == pytest.approx([(1 / 2 + 2 / 3) / 2, 1])
    assert cases.dice(of_patients=True).tolist() == pytest.approx([(1 / 2 + 6 / 7) / 2])
    assert (cases.case_names, cases.patient_names) == (("x", "y"), ("p",))
    assert cases.target_found.tolist() == [True, True]


def test_labels_survive_a_file_and_batches() -> None:
    whole = Cases.of(LABELLED, LABELLED_TRUTH, ["x", "y"], labels=["a", "b"])
    parts = [
        Cases.of(LABELLED[i : i + 1], LABELLED_TRUTH[i : i + 1], [name], labels=["a", "b"])
        for i, name in enumerate("xy")
    ]
    for other in (Cases.join(parts), Cases.from_rows(whole.rows())):
        assert other.scores() == whole.scores()
        assert other.dice().tolist() == whole.dice().tolist()
        assert other.case_names == whole.case_names


def test_labels_of_a_file_that_was_cut_are_refused() -> None:
    rows = Cases.of(LABELLED, LABELLED_TRUTH, ["x", "y"], labels=["a", "b"]).rows()
    with pytest.raises(ValueError, match="label 'b' must have the cases of label 'a'"):
        Cases.from_rows(rows[:-1])


def test_a_number_beyond_the_labels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"prediction must hold 0 to 1, .* found 2"):
        Cases.of(LABELLED, LABELLED_TRUTH, ["x", "y"], labels=["a"])


def test_each_case_has_a_spacing_of_its_own() -> None:
    masks = torch.zeros(2, 2, 1, 5, dtype=torch.bool)
    masks[0, :, 0, 0] = masks[1, :, 0, 4] = True
    spacing = torch.tensor([[1.0, 0.5], [1.0, 3.0]], dtype=torch.float64)
    cases = Cases.of(masks[0], masks[1], ["x", "y"], spacing=spacing)
    assert cases.hausdorff.tolist() == [2.0, 12.0]
