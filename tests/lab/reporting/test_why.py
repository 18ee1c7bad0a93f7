"""Reasons of a result that the page gives, from receipts made by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.kit import finished, recorded
from znorm.lab.reporting.tables import gather
from znorm.lab.reporting.why import why


def lines_of(root: Path, after: list[float], **choices: str) -> str:
    runs = []
    for method, before, given in (("baseline", [4.0, 1.0], [4.0, 1.0]), ("znorm", [8, 2], after)):
        epochs = [
            {
                "train_loss": 1.0,
                "test_accuracy": 0.5,
                "receipt": {"a": {"norm_before": one, "norm_after": other}},
            }
            for one, other in zip(before, given, strict=True)
        ]
        end = finished({"test_accuracy": 0.5, "train_loss": 1.0})
        runs.append(
            recorded(root, {"method": method, "epochs": 2, "receipt": True, **choices}, epochs, end)
        )
    (table,) = gather(root, runs)
    found = why(table)
    assert found is not None
    return " ".join(found.lines)


def test_scales_by_hand(tmp_path: Path) -> None:
    text = lines_of(tmp_path, [3.0, 3.0])
    assert "Baseline: from the first to the last epoch the gradients' norm" in text
    assert "came to 0.25 times what it was, and what the optimizer gets of them to 1 times" in text
    assert "Adam's steps follow" in text


def test_a_transform_that_leaves_nothing_is_told(tmp_path: Path) -> None:
    assert "and the optimizer gets nothing of them" in lines_of(tmp_path, [0.0, 0.0])


@pytest.mark.parametrize(("optimizer", "told"), [("adamw", True), ("sgd", False)])
def test_of_adam_is_told_where_it_is_adam(optimizer: str, told: bool, tmp_path: Path) -> None:
    assert ("Adam's steps follow" in lines_of(tmp_path, [3.0, 3.0], optimizer=optimizer)) == told
