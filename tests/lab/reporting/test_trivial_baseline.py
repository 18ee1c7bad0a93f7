"""The file of a floor, which anybody may have written."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest

from lab.kit import PLAIN, finished, recorded
from znorm.lab import tasks
from znorm.lab.reporting.figures import curves
from znorm.lab.reporting.tables import gather
from znorm.lab.reporting.trivial_baseline import folder, kept, trivial_baseline
from znorm.lab.spec import resolve

CHOICES = {**PLAIN, "epochs": 1, "data.limit": 24}


@pytest.mark.parametrize(
    "score",
    ["9" * 401, "9" * 5000, "1e308", "1.5", "-0.1", "NaN", "Infinity", "true", '"0.5"', "null"],
)
def test_a_floor_that_is_no_score_is_worked_out_anew(tmp_path: Path, score: str) -> None:
    spec = resolve(CHOICES)
    path = folder(tmp_path, spec) / "result.json"
    path.parent.mkdir(parents=True)
    path.write_text(f'{{"metrics": {{"test_accuracy": {score}, "train_accuracy": 0.5}}}}')
    assert kept(tmp_path, spec) is None
    metrics = {"test_accuracy": 0.5, "train_loss": 1.0}
    run = recorded(tmp_path, CHOICES, [metrics], finished(metrics))
    (table,) = gather(tmp_path, [run])
    assert table.trivial_baseline is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        curves(table)
    found = trivial_baseline(tmp_path, spec, tasks.load(spec.task, spec.data))
    assert 0 <= found["metrics"]["test_accuracy"] <= 1
    assert json.loads(path.read_text()) == found


@pytest.mark.parametrize("fingerprint", ["3", "null", "[]", '""'])
def test_a_floor_whose_fingerprint_is_none_is_worked_out_anew(
    tmp_path: Path, fingerprint: str
) -> None:
    spec = resolve(CHOICES)
    data = tasks.load(spec.task, spec.data)
    path = folder(tmp_path, spec) / "result.json"
    path.parent.mkdir(parents=True)
    path.write_text(f'{{"metrics": {{"test_accuracy": 0.5}}, "fingerprint": {fingerprint}}}')
    assert trivial_baseline(tmp_path, spec, data)["fingerprint"] == data.fingerprint


def test_a_floor_of_masks_keeps_its_channel_and_threshold(tmp_path: Path) -> None:
    spec = resolve({**CHOICES, "task": "phantom", "data.limit": 8})
    found = trivial_baseline(tmp_path, spec, tasks.load(spec.task, spec.data))
    assert found["metrics"]["threshold"] > 1
    assert kept(tmp_path, spec) == found
