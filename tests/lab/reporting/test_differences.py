"""The figure of paired differences holds those of the runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lab.kit import finished, recorded
from znorm.lab.evidence.question import Question
from znorm.lab.reporting.differences import paired_differences
from znorm.lab.reporting.strokes import strokes_of
from znorm.lab.reporting.tables import Table, gather
from znorm.lab.stats import t_interval


def table(root: Path, seeds: int) -> Table:
    runs = []
    for method, gains in (("baseline", (0, 0, 0)), ("znorm", (0.02, 0.04, -0.01))):
        for seed in range(seeds):
            metrics = {"test_accuracy": 0.5 + 0.1 * seed + gains[seed], "train_loss": 1.0}
            choices = {"model": "resnet20", "epochs": 1, "method": method, "seed": seed}
            runs.append(recorded(root, choices, [metrics], finished(metrics)))
    (found,) = gather(root, runs, Question("znorm", 0.01))
    return found


def test_each_pair_has_a_mark_and_the_interval_is_said(tmp_path: Path) -> None:
    svg = paired_differences(table(tmp_path, 3), strokes_of(["Baseline", "ZNorm"]))
    assert svg is not None
    interval = t_interval([2.0, 4.0, -1.0])
    said = f"ZNorm {interval.mean:+.2f} ({interval.low:+.2f} to {interval.high:+.2f})"
    assert said in svg
    assert 'aria-label="Differences from the baseline in test accuracy"' in svg
    marks = re.search(r'data-method="m1".*?</g>', svg, re.DOTALL)
    assert marks is not None
    places = [float(x) for x in re.findall(r'<[^>]*use[^>]* x="([\d.]+)"', marks[0])]
    assert len(places) == 3
    # Marks stand where the differences do: (4 - 2) to (2 - -1) is 2 to 3.
    two, four, less = places
    assert (four - two) / (two - less) == pytest.approx(2 / 3, rel=1e-4)


def test_one_pair_has_no_figure(tmp_path: Path) -> None:
    assert paired_differences(table(tmp_path, 1), strokes_of(["Baseline", "ZNorm"])) is None
