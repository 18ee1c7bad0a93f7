"""What holds for every score that runs have."""

from __future__ import annotations

import math

import pytest
import torch

from znorm.lab.metrics import Counts, classification_scores
from znorm.lab.metrics.score import ClassPredictions
from znorm.lab.metrics.scores import CLASS_SCORES, LEVELS, MASK_SCORES, columns_of, definition_of

LABELS = torch.tensor([0, 0, 1, 1, 1])
RIGHT = 9.0 * torch.nn.functional.one_hot(LABELS, 2).double()
# Of errors less is better.
ERRORS = ("loss", "calibration_error", "brier_score")


def is_a_sentence(text: str | None) -> bool:
    return text is not None and text.endswith(".") and "\n" not in text and "  " not in text


@pytest.mark.parametrize("name", CLASS_SCORES)
def test_a_score_of_classes(name: str) -> None:
    score = CLASS_SCORES[name]
    assert score.name == name
    assert is_a_sentence(score.definition)
    assert definition_of(name) == score.definition
    best, worst = (score.compute(ClassPredictions(s * RIGHT, LABELS)) for s in (1, -1))
    assert type(best) is float
    assert best < worst if name in ERRORS else best > worst
    more = classification_scores(torch.eye(3, dtype=torch.float64), torch.arange(3))
    assert (name in more) != score.two_classes
    if score.column is not None:
        assert score.column.key == f"test_{name}"
        assert score.column.optional or not score.two_classes


@pytest.mark.parametrize("name", MASK_SCORES)
def test_a_score_of_masks(name: str) -> None:
    score = MASK_SCORES[name]
    assert score.name == name
    #                                  right, wrong, both empty, truth empty, prediction empty
    counts = Counts(*torch.tensor([[4, 0, 0, 0, 0], [0, 4, 0, 2, 0], [0, 4, 0, 0, 2], [9] * 5]))
    values = score.compute(counts)
    assert values.dtype == torch.float64
    assert values.tolist() == [1, 0, 1, 0, 0]
    assert all(is_a_sentence(definition_of(f"{name}{level}")) for level in LEVELS)
    levels = {f"test_{name}{level}" for level in LEVELS}
    assert {column.key for column in score.columns} <= levels


@pytest.mark.parametrize("output", ["classes", "mask"])
def test_one_column_is_the_headline(output: str) -> None:
    columns = columns_of(output)
    assert [column.key for column in columns if column.place == 0] == [
        {"classes": "test_accuracy", "mask": "test_f1"}[output]
    ]
    assert len({column.key for column in columns}) == len(columns)


def test_what_is_undefined_is_left_out() -> None:
    scores = classification_scores(RIGHT[:2], LABELS[:2])
    assert "auroc" not in scores
    assert not any(map(math.isnan, scores.values()))


def test_what_is_no_score_has_no_definition() -> None:
    assert definition_of("f1_per_moon") is None
    assert definition_of("_per_slice") is None
