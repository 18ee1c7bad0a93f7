"""Runs that end early, and runs that keep the weights of their best epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lab.kit import PLAIN, finished, recorded
from znorm import lab
from znorm.lab import tasks
from znorm.lab.cli import run as call
from znorm.lab.evidence.acceleration import acceleration
from znorm.lab.evidence.endings import ENDINGS, carried_on, rule_of
from znorm.lab.evidence.pairs import pairs_of
from znorm.lab.runs import runner
from znorm.lab.runs.inference import outputs
from znorm.lab.spec import resolve

CHOICES: dict[str, Any] = {
    **PLAIN,
    "epochs": 12,
    "data.limit": 24,
    "batch_size": 8,
    "learning_rate": 0.01,
    "schedule": "cosine",
}
KEYS = ("train_loss", "test_accuracy", "validation_accuracy", "test_loss")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> lab.Run:
    """A run of all its epochs, by whose scores the others must end."""
    return lab.run(CHOICES, out=tmp_path_factory.mktemp("whole"))


def scores(run: lab.Run) -> list[float]:
    return [entry["validation_accuracy"] for entry in run.history]


def end_by_hand(validation: Sequence[float], patience: int) -> tuple[int, int]:
    """The best epoch and the last one, counted from 1."""
    best, best_at = -math.inf, 0
    for epoch, score in enumerate(validation, start=1):
        if score > best:
            best, best_at = score, epoch
        elif epoch - best_at >= patience:
            return best_at, epoch
    return best_at, len(validation)


def shown(run: lab.Run, epochs: int) -> list[tuple[float, ...]]:
    return [tuple(entry[key] for key in KEYS) for entry in run.history[:epochs]]


def test_a_run_ends_where_its_patience_does_and_nothing_before_it_changes(
    whole: lab.Run, tmp_path: Path
) -> None:
    # Of scores that come to a best before the end, else this would show nothing.
    patience = next(n for n in (1, 2, 3) if end_by_hand(scores(whole), n)[1] < 12)
    _, last = end_by_hand(scores(whole), patience)
    run = lab.run({**CHOICES, "patience": patience}, out=tmp_path)
    assert run.result is not None
    # The same to the bit, though the cosine is made for all twelve epochs.
    assert shown(run, 12) == shown(whole, last)
    assert run.epochs == run.result["epochs"] == last
    assert run.metrics["test_accuracy"] == whole.history[last - 1]["test_accuracy"]
    assert run.result["hashes"]["final_weights"] != (whole.result or {})["hashes"]["final_weights"]


def test_the_best_epoch_is_what_a_run_is_scored_and_kept_by(whole: lab.Run, tmp_path: Path) -> None:
    best, _ = end_by_hand(scores(whole), 99)
    assert best < 12
    run = lab.run({**CHOICES, "best_epoch": True}, out=tmp_path)
    assert shown(run, 12) == shown(whole, 12)
    for key in KEYS:
        assert run.metrics[key] == whole.history[best - 1][key]
    assert run.metrics["best_validation_epoch"] == best
    test = tasks.load(run.spec.task, run.spec.data).test
    right = outputs(run, test).argmax(1) == test.targets
    assert float(right.double().mean()) == run.metrics["test_accuracy"]
    assert "Scores and weights are those of the epoch that was best" in rule_of([run])


@pytest.mark.slow
def test_a_page_says_how_runs_ended(tmp_path: Path) -> None:
    run = lab.run({**CHOICES, "patience": 1, "best_epoch": True}, out=tmp_path)
    assert run.epochs < 12
    page = lab.report(tmp_path).read_text()
    assert "A run ends after 1 epoch without a better score" in page
    assert "events.jsonl is damaged" not in page
    assert "Scores and weights are those of the epoch that was best" in page
    assert "Scores are those of the last epoch" not in page
    assert lab.verify(tmp_path).differing == ()


@pytest.mark.parametrize("after", [pytest.param(1, marks=pytest.mark.slow), 7])
def test_a_run_that_is_stopped_again_and_again_has_the_same_bits(
    after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choices = {**CHOICES, "epochs": 5, "patience": 2, "best_epoch": True}
    at_once = lab.run(choices, out=tmp_path / "at once")
    left = after

    def stop_requested(watch: Any) -> bool:
        nonlocal left
        left -= 1
        return left == 0

    monkeypatch.setattr(runner._Watch, "stop_requested", stop_requested)
    for _ in range(99):
        left = after
        try:
            again = lab.run(choices, out=tmp_path / "stopped")
            break
        except lab.Interrupted:
            continue
    assert again.result is not None
    assert at_once.result is not None
    assert {**again.result, "seconds": 0} == {**at_once.result, "seconds": 0}
    assert "batches_by_epoch" in again.result["hashes"]
    paths = (one.folder / "weights.pt" for one in (at_once, again))
    first, second = (path.read_bytes() for path in paths)
    assert first == second


@pytest.mark.slow
def test_cases_are_those_of_the_best_epoch(tmp_path: Path) -> None:
    choices = {**PLAIN, "task": "phantom", "epochs": 4, "data.limit": 6, "best_epoch": True}
    run = lab.run({**choices, "learning_rate": 0.01}, out=tmp_path)
    cases, best = run.cases(), int(run.metrics["best_validation_epoch"])
    assert cases is not None
    assert cases.scores()["f1"] == run.metrics["test_f1"] == run.history[best - 1]["test_f1"]


def test_what_is_best_needs_validation_images(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--limit", "16", "--set", "data.validation=0", "--methods", "baseline"]
    for option in (["--patience", "3"], ["--best-epoch"]):
        assert call(["compare", *arguments, *option]) == 2
        assert "validation images" in capsys.readouterr().err
    for wrong in ("0", "-1"):
        assert call(["compare", *arguments, "--patience", wrong]) == 2
        assert "patience" in capsys.readouterr().err


def test_left_out_they_change_no_hash() -> None:
    spec = resolve(CHOICES)
    assert resolve({**CHOICES, "patience": None, "best_epoch": False}) == spec
    assert "patience" not in spec.canonical()
    assert "best_epoch" not in spec.canonical()


def made(root: Path, method: str, seed: int, validation: Sequence[float], **more: Any) -> lab.Run:
    """A recorded run with a patience of one epoch and these test scores by epoch."""
    epochs = [
        {"train_loss": 1.0, "test_accuracy": score, "validation_accuracy": score, "seconds": 1.0}
        for score in validation
    ]
    metrics = {"test_accuracy": validation[-1], "train_loss": 1.0}
    choices = {"method": method, "seed": seed, "epochs": 9, "patience": 1}
    result = finished(metrics, epochs=len(epochs), **more)
    return recorded(root, choices, epochs, result)


def hashes(*batches: str) -> dict[str, Any]:
    return {"hashes": {"batches": batches[-1], "batches_by_epoch": " ".join(batches)}}


def test_runs_of_unequal_length_are_pairs_by_the_epochs_that_both_had(tmp_path: Path) -> None:
    short = made(tmp_path, "znorm", 0, [0.5, 0.4], **hashes("a", "b"))
    long = made(tmp_path, "baseline", 0, [0.1, 0.2, 0.6, 0.5], **hashes("a", "b", "c", "d"))
    (pair,) = pairs_of([short], [long]).made
    assert pair.verified == ("batches",)
    other = made(tmp_path / "b", "baseline", 0, [0.1, 0.2, 0.6], **hashes("a", "x", "c"))
    assert "batches" in pairs_of([short], [other]).refused[0][1]


def test_statistics_of_runs_that_ended_early(tmp_path: Path) -> None:
    base = [made(tmp_path, "baseline", seed, [0.1, 0.2, 0.3, 0.2]) for seed in (0, 1)]
    mine = [
        made(tmp_path, "znorm", 0, [0.2, 0.25, 0.2]),  # there at once: the baseline ended with 0.2
        made(tmp_path, "znorm", 1, [0.1, 0.05]),  # ended before it got there
    ]
    found = acceleration(mine, base, "test_accuracy")
    assert found is not None
    assert [arrival.epoch for arrival in found.arrivals] == [1, None]
    assert found.reached == 1
    # Its end is not the others': one that never arrives has been waited for to the last epoch.
    assert found.arrivals[1].watched == 9
    assert ENDINGS["mean of the last tenth"](mine[0], "test_accuracy") == 0.2
    curve = [entry["test_accuracy"] for entry in carried_on(mine[1], 4)]
    assert curve == [0.1, 0.05, 0.05, 0.05]
    assert [entry["epoch"] for entry in carried_on(mine[1], 4)] == [1, 2, 3, 4]
    assert "4 of 4 ended early; they were trained for 2 to 4 epochs" in rule_of([*base, *mine])
    plain = recorded(tmp_path, {"epochs": 9}, [{"train_loss": 1.0, "test_accuracy": 0.5}])
    assert len(carried_on(plain, 4)) == 1
    assert rule_of([plain]) == ""
