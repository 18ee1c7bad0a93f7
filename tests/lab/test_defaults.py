"""The defaults of the built-in task are worth their time: a net learns what colours do not tell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from znorm import lab

pytestmark = pytest.mark.slow


def test_the_default_baseline_beats_colour_statistics(tmp_path: Path) -> None:
    runs = lab.compare(methods=["baseline"], seeds=3, out=tmp_path)
    (path,) = tmp_path.glob("pcam_mini/colour_statistics__*/result.json")
    floor = json.loads(path.read_text())["metrics"]["test_accuracy"]
    mean = sum(run.metrics["test_accuracy"] for run in runs) / 3
    # Half of the test patches show tumour; the floor itself must be above chance.
    assert 0.65 < floor < mean
