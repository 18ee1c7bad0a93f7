"""The card at the top of a page: of whole grids, and of grids of which parts are missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from lab.kit import finished, recorded
from znorm.lab.errors import DataError
from znorm.lab.evidence.question import Question
from znorm.lab.reporting.card import card_of
from znorm.lab.reporting.page import write_page
from znorm.lab.reporting.tables import gather
from znorm.lab.runs.folder import Run

HASHES = {"data": "d", "initial_weights": "i", "batches": "b"}


def runs_of(
    root: Path, scores: Mapping[str, Sequence[float | str | None]], **more: Any
) -> list[Run]:
    """Runs by method and seed: a score, how the run ended, or None where there is no run."""
    made = []
    for method, row in scores.items():
        for seed, score in enumerate(row):
            if score is None:
                continue
            choices = {"method": method, "seed": seed, "epochs": 2}
            if score == "waiting":
                made.append(recorded(root, choices))
                continue
            if isinstance(score, str):
                result: dict[str, Any] = {"status": score, "metrics": {}, "seconds": 5.0}
                result |= {"diverged_step": 3} if score == "diverged" else {"error": "a fault"}
                made.append(recorded(root, choices, [], result))
                continue
            epochs = [
                {"train_loss": 1.0, "test_accuracy": score, "seconds": 5.0 * epoch, **more}
                for epoch in (1, 2)
            ]
            metrics = {"test_accuracy": score, "train_loss": 1.0}
            made.append(
                recorded(
                    root, choices, epochs, {**finished(metrics, hashes=HASHES), "seconds": 60.0}
                )
            )
    return made


def card(root: Path, runs: list[Run], question: Question | None = None) -> Any:
    (table,) = gather(root, runs, question)
    return card_of(table)


def test_the_lines_of_a_card_by_hand(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, {"baseline": [0.70, 0.71, 0.72], "znorm": [0.60, 0.63, 0.62]})
    found = card(tmp_path, runs)
    lines = {line.title: line.text for line in found.lines}
    assert found.decision == "do not adopt"
    assert found.headline == "Do not adopt ZNorm: it is behind the baseline."
    # Differences of -10, -8 and -10: their mean, 4.303 times 1.1547 / sqrt(3) about it.
    assert lines["Effect"] == (
        "Test accuracy against the baseline: −9.33 points (95 %: −12.20 to −6.46), 3 pairs of runs."
    )
    assert lines["How sure"] == (
        "p = 0.0051 by a t test, which takes differences for normal; p = 0.25 by flipping signs, "
        "which are a matter of chance where methods are alike, and cannot be below 0.25 for 3 "
        "pairs of runs."
    )
    assert lines["Size"].startswith("A run of ZNorm is above one of the baseline in 0% of cases; ")
    assert lines["Cost"].startswith("1.00 times the baseline's time a run; no memory of its own")
    assert lines["It rests on"] == (
        "3 pairs of runs; pcam_mini, resnet20, 2 epochs. By their hashes the two of a pair have "
        "the same images, initial weights and augmented batches."
    )


def test_how_many_more_seeds_and_how_long_they_take(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, {"baseline": [0.7, 0.7, 0.7], "znorm": [0.70, 0.72, 0.69]})
    found = card(tmp_path, runs)
    assert found.decision == "undecided"
    lines = {line.title: line.text for line in found.lines}
    # 2.074 * 0.01528 / sqrt(23) is below 0.01 - 0.00333, 2.080 * 0.01528 / sqrt(22) is not; a pair
    # is two runs of 60 s.
    assert lines["More seeds"] == (
        "Undecided between no gain and one of 1 point: 20 more seeds, about 40 min, decide it if "
        "the difference and its spread stay what they are."
    )
    finer = card(tmp_path, runs, Question("znorm", 0.0334))
    assert "one of 3.34 points" in finer.lines[-2].text


HALF_DONE: dict[str, dict[str, Sequence[float | str | None]]] = {
    "one seed": {"baseline": [0.7], "znorm": [0.8]},
    "a method is missing for some seeds": {"baseline": [0.7, 0.7, 0.7], "znorm": [0.8, None, 0.8]},
    "half done": {"baseline": [0.7, 0.7], "znorm": [0.8, "waiting"]},
    "no baseline that ended": {"baseline": ["waiting", "failed"], "znorm": [0.8, 0.8]},
    "all diverged": {"baseline": ["diverged"] * 2, "znorm": ["diverged"] * 2},
    "the method diverged": {"baseline": [0.7] * 3, "znorm": ["diverged"] * 3},
    "all failed": {"baseline": ["failed"], "znorm": ["failed"]},
    # Such as those of nets that have learned nothing.
    "alike in score, which nets need not be": {"baseline": [0.5, 0.5], "znorm": [0.5, 0.5]},
}


@pytest.mark.parametrize("name", HALF_DONE)
def test_a_report_of_a_grid_that_is_not_whole_comes_and_claims_nothing(
    name: str, tmp_path: Path
) -> None:
    runs = runs_of(tmp_path, HALF_DONE[name])
    found = card(tmp_path, runs)
    expected = "do not adopt" if name == "the method diverged" else "undecided"
    if name in ("a method is missing for some seeds", "alike in score, which nets need not be"):
        assert "all pairs have the same difference" in found.headline
    assert found.decision == expected
    page = write_page(tmp_path, runs, {runs[0].spec.data_key: DataError("no data")}).read_text()
    assert found.headline.replace("'", "&#39;") in page
    for text in ("nan", "inf", "None"):
        assert f">{text}<" not in page
        assert f" {text} " not in page.partition("</style>")[2].partition("<svg")[0]


@pytest.mark.parametrize("other", ["w", "v", None])
def test_nets_that_are_the_same_make_no_difference(tmp_path: Path, other: str | None) -> None:
    runs = []
    for method, weights in (("baseline", "w"), ("znorm", other)):
        hashes = {**HASHES, **({} if weights is None else {"final_weights": weights})}
        for seed in (0, 1):
            result = finished({"test_accuracy": 0.7, "train_loss": 1.0}, hashes=hashes)
            runs.append(recorded(tmp_path, {"method": method, "seed": seed}, [], result))
    found = card(tmp_path, runs)
    assert found.decision == ("do not adopt" if other == "w" else "undecided")
    assert ("to the bit" in found.headline) == (other == "w")


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    scores = {
        "baseline": [0.7, 0.7, "diverged", 0.7],
        "znorm": [0.8, "diverged", 0.8, "failed"],
    }
    text = card(tmp_path, runs_of(tmp_path, scores)).lines[-1].text
    assert text.endswith(
        "Left out: seed 1: diverged, the baseline did not; seed 2: did not diverge, the baseline "
        "did; seed 3: one of the two failed."
    )


def test_nothing_is_asked_without_a_baseline_or_without_a_method(tmp_path: Path) -> None:
    assert card(tmp_path / "1", runs_of(tmp_path / "1", {"znorm": [0.7]})) is None
    assert card(tmp_path / "2", runs_of(tmp_path / "2", {"baseline": [0.7]})) is None


def test_a_clip_that_hardly_acts_is_said_on_the_card_and_in_its_row(tmp_path: Path) -> None:
    scores = {"baseline": [0.7, 0.7], "gradient_clipping": [0.7, 0.7]}
    runs = runs_of(tmp_path, scores, clipped=0.003)
    (table,) = gather(tmp_path, runs)
    said = "the clip was active in 0.3% of steps: in all others this method is the baseline"
    assert [row.remark for row in table.rows] == [None, said]
    found = card_of(table)
    assert found is not None
    assert f"T{said[1:]}." in [line.text for line in found.lines]
    often = runs_of(tmp_path / "often", scores, clipped=0.4)
    assert gather(tmp_path / "often", often)[0].rows[1].remark is None
