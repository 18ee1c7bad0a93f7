"""Truths that are planted in small real runs, and what the report says of each."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import znorm
from znorm import lab
from znorm.lab.evidence.question import Question
from znorm.lab.evidence.verdict import verdict
from znorm.lab.reporting.card import card_of
from znorm.lab.reporting.tables import gather


class Scaled(znorm.transforms.Transform):
    """Multiplies gradients by a number."""

    factor: float

    def __init__(self, factor: float) -> None:
        object.__setattr__(self, "factor", factor)

    def decide(self, moments: znorm.Moments, parameters: Any = None) -> znorm.Affine:
        zero = torch.zeros_like(moments.mean)
        return znorm.Affine(zero, zero + self.factor)


# SGD at a rate at which nothing is learned: gradients that are larger make it learn.
SLOW: dict[str, Any] = {
    "epochs": 4,
    "limit": 400,
    "batch_size": 32,
    "device": "cpu",
    "precision": "float32",
    "optimizer": {"name": "sgd"},
    "lr": 1e-8,
}


def own(name: str, transform: str, arguments: dict[str, float]) -> dict[str, Any]:
    return {"name": name, "transform": [{transform: arguments}]}


@pytest.mark.slow
def test_a_winner_no_difference_and_a_clip_that_never_acts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "planted", sys.modules[__name__])
    methods = [
        "baseline",
        own("winner", "planted:Scaled", {"factor": 2e6}),
        own("same", "planted:Scaled", {"factor": 1.5}),
        own("never", "ClipGlobalNorm", {"threshold": 1e9}),
    ]
    runs = lab.compare(methods=methods, seeds=4, out=tmp_path, **SLOW)
    (table,) = gather(tmp_path, runs, Question.read(tmp_path))
    rows = {row.method: row for row in table.rows}
    decisions = {
        name: verdict(row.comparison, 0.01) for name, row in rows.items() if row.comparison
    }
    assert decisions["winner"].decision == "adopt"
    for name in ("same", "never"):
        assert decisions[name].decision == "do not adopt"
        assert decisions[name].reason == "it makes no difference in any pair"
    assert rows["winner"].remark is rows["same"].remark is None
    card = card_of(table)
    assert card is not None
    assert card.headline == "Adopt winner: it is ahead of the baseline."
    page = (tmp_path / "report.html").read_text()
    assert card.headline in page
    # By its name in the table, and in the paragraph on methods.
    assert page.count("the clip was never active: this method is the baseline") == 2
    assert "never active" not in page.partition("Against the baseline")[0].partition("<h2>")[0]
