"""Folds of a user's own images: what is trained, and what is said over all of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from lab.kit import PLAIN, finished
from lab.own_folders import classes, table
from znorm.lab.api import planned
from znorm.lab.cli import run as call
from znorm.lab.errors import ConfigurationError, DataError
from znorm.lab.evidence.question import Question
from znorm.lab.options import CompareOptions
from znorm.lab.reporting.folds import over_folds
from znorm.lab.reporting.page import write_page
from znorm.lab.reporting.tables import gather
from znorm.lab.runs.folder import Run
from znorm.lab.spec import RunSpec, resolve
from znorm.lab.stats import resampled_interval, t_interval


@pytest.fixture(autouse=True)
def _data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZNORM_DATA_DIR", str(tmp_path / "decoded"))


def test_the_interval_is_nadeau_and_bengios() -> None:
    values = [0.02, 0.05, -0.01, 0.03, 0.04]
    variance = (1 / 5 + 0.2 / 0.8) * np.var(values, ddof=1)
    half = stats.t.ppf(0.975, 4) * math.sqrt(variance)
    found = resampled_interval(values, 0.2 / 0.8)
    assert found.mean == pytest.approx(np.mean(values))
    assert found.half == pytest.approx(half)
    assert resampled_interval(values, 1e-12).half == pytest.approx(t_interval(values).half)
    for ratio in (0.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="ratio: expected above 0"):
            resampled_interval(values, ratio)


def specs(root: Path, out: Path, **options: Any) -> list[Any]:
    chosen = {"methods": ["baseline", "znorm"], "seeds": 2, "folds": 3, "device": "cpu", **options}
    return planned(CompareOptions(data=root, out=out, **chosen))[0]


def test_each_group_is_tested_in_one_fold(tmp_path: Path) -> None:
    root = classes(tmp_path / "own", count=24, patients=12)
    made = specs(root, tmp_path / "runs")
    assert len(made) == 3 * 2 * 2
    assert {spec.data.fold for spec in made} == {None, 1, 2}
    assert {spec.data.test_share for spec in made} == {1 / 3}
    assert len({spec.data.contents for spec in made}) == 3


def test_folds_of_the_users_own(tmp_path: Path) -> None:
    root = classes(tmp_path / "own", count=12)
    rows = [
        {
            "file": f"{kind}/{kind}-{number}.png",
            "label": kind,
            "patient": f"p{number}",
            "fold": str(9 + number % 3),
        }
        for kind in ("cat", "dog")
        for number in range(12)
    ]
    listed = table(tmp_path, rows)
    made = specs(root, tmp_path / "runs", table=listed, epochs=1)
    assert {spec.data.test_share for spec in made} == {1 / 3}
    with pytest.raises(ConfigurationError, match="folds: the table has 3, 9, 10, 11"):
        specs(root, tmp_path / "runs", table=listed, folds=4)
    rows[0]["fold"] = "11"
    with pytest.raises(DataError, match=r"line 14: p0 is in 9 and, above, in 11; .* to one fold"):
        specs(root, tmp_path / "runs", table=table(tmp_path, rows))
    rows[0]["fold"] = ""
    with pytest.raises(DataError, match="line 2: has no fold"):
        specs(root, tmp_path / "runs", table=table(tmp_path, rows))
    with pytest.raises(ConfigurationError, match="has both part and fold among its columns"):
        specs(
            root, tmp_path / "r", table=table(tmp_path, [{**one, "part": "test"} for one in rows])
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 1}, "folds: expected a whole number from 2 to 50, found 1"),
        ({"until": "decided"}, "folds: not together with until"),
        ({"tune": 3}, "folds: not together with tune"),
        ({"set": {"data.fold": 1}}, "folds: gives data.fold; leave that out"),
        ({"folds": 30}, "12 groups, such as patients, are too few for 30 folds"),
    ],
)
def test_what_does_not_go_with_folds_is_said(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    root = classes(tmp_path / "own", count=24, patients=12)
    with pytest.raises(ConfigurationError, match=message):
        specs(root, tmp_path / "runs", **options)


def test_folds_are_of_ones_own_images(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert call(["compare", "--folds", "3", "--out", str(tmp_path)]) == 2
    assert "folds: are of your own images; give their folder as data" in capsys.readouterr().err


def made(root: Path, method: str, fold: int, seed: int, score: float) -> Run:
    data = {
        "augment": "none",
        "folder": "/somewhere",
        "contents": f"{fold:016}",
        "size": (32, 32),
        "channels": 3,
        "test_share": 0.25,
        "validation": 0.2,
        "fold": fold or None,
        "folds": 4,
    }
    choices = {"model": "resnet20", "epochs": 1, "method": method, "seed": seed}
    plain = resolve({**PLAIN, **choices}).model_dump()
    run = Run.at(root, RunSpec.model_validate({**plain, "task": "own_classes", "data": data}))
    metrics = {"test_accuracy": score, "train_loss": 1.0}
    run.announce()
    run.log({"event": "epoch", "epoch": 1, **metrics})
    run.finish(finished(metrics))
    return run


def test_the_section_over_folds_by_hand(tmp_path: Path) -> None:
    baseline = [(0.70, 0.72), (0.80, 0.82), (0.60, 0.62), (0.75, 0.77)]
    gains = [0.04, 0.06, 0.05, 0.05]
    runs = []
    for fold, scores in enumerate(baseline):
        for seed, score in enumerate(scores):
            runs.append(made(tmp_path, "baseline", fold, seed, score))
            runs.append(made(tmp_path, "znorm", fold, seed, score + gains[fold]))
    tables = gather(tmp_path, runs, Question("znorm", 0.01))
    assert [one.suffix for one in tables] == [f", fold {fold}" for fold in (1, 2, 3, 4)]
    (found,) = over_folds(tables)
    reference, znorm = found.rows
    assert reference.scores == pytest.approx((0.71, 0.81, 0.61, 0.76))
    assert reference.gain is None
    assert znorm.mean == pytest.approx(np.mean([0.75, 0.87, 0.66, 0.81]))
    # A quarter is tested, and four fifths of the rest are trained on.
    half = stats.t.ppf(0.975, 3) * math.sqrt((1 / 4 + 0.25 / 0.6) * np.var(gains, ddof=1))
    assert znorm.gain is not None
    assert (znorm.gain.mean, znorm.gain.half) == pytest.approx((0.05, half))
    assert found.headline == "Adopt ZNorm: it is ahead, over 4 folds."
    gone = {run.spec.data_key: DataError("not here") for run in runs}
    page = write_page(tmp_path, runs, gone, question=Question("znorm", 0.01)).read_text()
    assert "Your images, resnet20: over 4 folds" in page
    assert f"+5.00 (+{100 * (0.05 - half):.2f} to +{100 * (0.05 + half):.2f})" in page
    assert "Over 4 workloads" not in page


def test_missing_folds_and_equal_differences_decide_nothing(tmp_path: Path) -> None:
    question = Question("znorm", 0.01)
    runs = [made(tmp_path, "baseline", fold, 0, 0.5 + fold / 10) for fold in range(4)]
    runs += [made(tmp_path, "znorm", fold, 0, 0.55 + fold / 10) for fold in (0, 1, 3)]
    (found,) = over_folds(gather(tmp_path, runs, question))
    assert found.headline == (
        "Undecided over folds: pairs of runs are not there yet in all 4 of them."
    )
    assert [row.mean is None for row in found.rows] == [False, True]
    gone = {run.spec.data_key: DataError("not here") for run in runs}
    few = [run for run in runs if run.spec.data.fold != 2]
    page = write_page(tmp_path, few, gone, question=question).read_text()
    assert "3 of 4 folds are here." in page
    assert '<th scope="col">Fold 4</th>' in page
    assert '<th scope="col">Fold 3</th>' not in page
    runs.append(made(tmp_path, "znorm", 2, 0, 0.75))
    (found,) = over_folds(gather(tmp_path, runs, question))
    assert found.decision == "undecided"
    assert "all have the same difference" in found.headline


def test_what_is_there_twice_is_no_fold(tmp_path: Path) -> None:
    runs = [made(tmp_path / str(n), "znorm", n % 2, 0, 0.5) for n in range(3)]
    other = runs[2].spec.data.model_copy(update={"window": (0.0, 9.0)})
    spec = runs[2].spec.model_copy(update={"data": other})
    changed = Run.at(tmp_path, spec)
    changed.announce()
    changed.finish(finished({"test_accuracy": 0.5, "train_loss": 1.0}))
    assert over_folds(gather(tmp_path, [*runs[:2], changed])) == []
