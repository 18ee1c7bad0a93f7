"""The verdict's rule, which pairs count, and the question, against cases made by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lab.kit import finished, recorded
from znorm.lab.errors import ConfigurationError, DataError
from znorm.lab.evidence.acceleration import acceleration
from znorm.lab.evidence.comparison import compare_pairs
from znorm.lab.evidence.endings import ENDINGS
from znorm.lab.evidence.pairs import pairs_of
from znorm.lab.evidence.question import Question
from znorm.lab.evidence.verdict import decide, verdict
from znorm.lab.runs.folder import Run
from znorm.lab.stats import Interval, half_width, half_width_at_any_time, t_interval

KEY = "test_accuracy"
HASHES = {"data": "d", "initial_weights": "i", "batches": "b"}


def run_of(root: Path, method: str, seed: int, score: float | str, **more: Any) -> Run:
    """A run that ended with a score, or as "diverged" or "failed"."""
    choices = {"method": method, "seed": seed, "epochs": 10}
    hashes = {key: text for key, text in {**HASHES, **more.pop("hashes", {})}.items() if text}
    if isinstance(score, str):
        result: dict[str, Any] = {"status": score, "metrics": {}, "seconds": 10.0, "hashes": hashes}
        result |= {"diverged_step": 1} if score == "diverged" else {"error": "a fault"}
        return recorded(root, choices, [], result)
    epochs = more.pop("epochs", [score] * 10)
    entries = [
        {"train_loss": 1.0, KEY: one, "seconds": float(number)}
        for number, one in enumerate(epochs, start=1)
    ]
    metrics = {KEY: score, "train_loss": 1.0, **more}
    return recorded(root, choices, entries, {**finished(metrics, hashes=hashes), "seconds": 10.0})


def runs(root: Path, method: str, scores: Sequence[float | str]) -> list[Run]:
    return [run_of(root, method, seed, score) for seed, score in enumerate(scores)]


def compared(root: Path, baseline: Sequence[float | str], method: Sequence[float | str]) -> Any:
    return compare_pairs(
        pairs_of(runs(root, "znorm", method), runs(root, "baseline", baseline)), KEY
    )


@pytest.mark.parametrize(
    ("low", "high", "decision"),
    [
        (0.001, 0.05, "adopt"),
        (0.011, 0.05, "adopt"),
        (0.001, 0.009, "do not adopt"),  # ahead, by too little
        (-0.004, 0.004, "do not adopt"),  # alike
        (-0.05, 0.009, "do not adopt"),
        (-0.05, -0.001, "do not adopt"),
        (-0.001, 0.011, "undecided"),
        (0.0, 0.02, "undecided"),
    ],
)
def test_the_rule(low: float, high: float, decision: str) -> None:
    assert decide(Interval((low + high) / 2, (high - low) / 2), 0.01) == decision


@pytest.mark.parametrize(
    ("baseline", "method", "decision", "reason"),
    [
        ([0.50, 0.60, 0.70], [0.60, 0.701, 0.80], "adopt", "it is ahead of the baseline"),
        ([0.50, 0.60, 0.70], [0.40, 0.501, 0.60], "do not adopt", "it is behind the baseline"),
        (
            [0.5] * 4,
            [0.5001, 0.4999, 0.5, 0.5],
            "do not adopt",
            "it makes no difference that matters",
        ),
        ([0.5] * 4, [0.505, 0.5051, 0.5049, 0.505], "do not adopt", "it is ahead by less than"),
        ([0.5] * 3, [0.47, 0.49, 0.50], "undecided", "the interval holds both 0 and a gain"),
        ([0.5], [0.6], "undecided", "one pair has no interval"),
        ([], [0.6], "undecided", "there is no pair of finished runs"),
        ([0.5, 0.5], ["diverged", "diverged"], "do not adopt", "every run of it diverged"),
        (
            [0.5, 0.5, 0.5, 0.5],
            [0.6, 0.61, 0.6, "diverged"],
            "undecided",
            "it is ahead where it finished, and diverged in 1 of 4 seeds",
        ),
        (["diverged"] * 2, ["diverged"] * 2, "undecided", "there is no pair of finished runs"),
        (["failed", 0.5], [0.5, "failed"], "undecided", "there is no pair of finished runs"),
    ],
)
def test_verdicts(
    baseline: Sequence[float | str],
    method: Sequence[float | str],
    decision: str,
    reason: str,
    tmp_path: Path,
) -> None:
    found = verdict(compared(tmp_path, baseline, method), 0.01)
    assert found.decision == decision
    assert reason in found.reason


@pytest.mark.parametrize("scores", [[0.49, 0.50, 0.53], [0.48, 0.505, 0.51, 0.47, 0.52]])
def test_so_many_more_seeds_decide_and_one_fewer_does_not(
    scores: list[float], tmp_path: Path
) -> None:
    comparison = compared(tmp_path, [0.5] * len(scores), scores)
    found = verdict(comparison, 0.01)
    assert found.decision == "undecided"
    assert found.more_seeds is not None
    mean, spread = comparison.interval.mean, comparison.spread

    def decided(pairs: int) -> bool:
        return decide(Interval(mean, half_width(pairs, spread)), 0.01) != "undecided"

    total = len(scores) + found.more_seeds
    assert decided(total)
    assert not decided(total - 1)


def test_of_seeds_that_were_added_until_it_was_decided_it_takes_more(tmp_path: Path) -> None:
    scores = [0.48, 0.505, 0.51, 0.47, 0.52]
    pairs = pairs_of(runs(tmp_path, "znorm", scores), runs(tmp_path, "baseline", [0.5] * 5))
    fixed, sequential = (
        verdict(compare_pairs(pairs, KEY, sequential=one), 0.01) for one in (False, True)
    )
    assert fixed.more_seeds is not None
    assert sequential.more_seeds is not None
    assert sequential.more_seeds > fixed.more_seeds
    assert half_width_at_any_time(9, 1.0) > half_width(9, 1.0)


def test_pairs_are_refused_by_what_differs_and_said_where(tmp_path: Path) -> None:
    baseline = runs(tmp_path, "baseline", [0.5] * 5)
    other = [
        run_of(tmp_path, "znorm", 0, 0.6),
        run_of(tmp_path, "znorm", 1, 0.6, hashes={"data": "x"}),
        run_of(tmp_path, "znorm", 2, 0.6, hashes={"initial_weights": "x"}),
        run_of(tmp_path, "znorm", 3, 0.6, hashes={"batches": "x"}),
        # A run that diverged has not seen all batches.
        run_of(tmp_path, "znorm", 4, "diverged", hashes={"batches": "x"}),
    ]
    pairs = pairs_of(other, baseline)
    assert [pair.seed for pair in pairs.made] == [0]
    assert pairs.made[0].verified == ("data", "initial_weights", "batches")
    assert pairs.refused == (
        (1, "other images than the baseline's"),
        (2, "other initial weights than the baseline's"),
        (3, "other batches (their order, or the augmentation) than the baseline's"),
    )
    assert [pair.seed for pair in pairs.only_method_diverged] == [4]
    assert len(compare_pairs(pairs, KEY).differences) == 1


def test_hashes_that_are_not_kept_refuse_nothing_and_verify_nothing(tmp_path: Path) -> None:
    pairs = pairs_of(
        [run_of(tmp_path, "znorm", 0, 0.6, hashes={"data": ""})],
        runs(tmp_path, "baseline", [0.5]),
    )
    assert pairs.made[0].verified == ("initial_weights", "batches")


def test_seeds_of_one_side_alone_are_missing(tmp_path: Path) -> None:
    pairs = pairs_of(
        [run_of(tmp_path, "znorm", seed, 0.6) for seed in (1, 2)],
        runs(tmp_path, "baseline", [0.5] * 2),
    )
    assert [pair.seed for pair in pairs.made] == [1]
    assert pairs.waiting == (0, 2)
    assert pairs.left_out == ["seed 0, 2: one of the two is not there or not finished"]


def test_every_seed_that_is_in_no_difference_has_its_reason(tmp_path: Path) -> None:
    fell = "diverged"
    found = compared(tmp_path, [0.5, fell, fell, 0.5, 0.5, 0.5], [0.6, fell, 0.6, fell, "failed"])
    assert [pair.seed for pair in found.pairs.made] == [0]
    assert found.pairs.ended == 4
    assert found.pairs.left_out == [
        "seed 3: diverged, the baseline did not",
        "seed 2: did not diverge, the baseline did",
        "seed 1: diverged, and so did the baseline",
        "seed 4: one of the two failed",
        "seed 5: one of the two is not there or not finished",
    ]


def test_differences_that_only_rounding_tells_apart_have_no_interval(tmp_path: Path) -> None:
    # 12 of 380 images more, twice.
    baseline, method = [250 / 380, 252 / 380], [262 / 380, 264 / 380]
    assert method[0] - baseline[0] != method[1] - baseline[1]
    found = compared(tmp_path, baseline, method)
    assert found.interval.half is None
    assert found.spread == 0
    assert all(map(math.isnan, (found.p, found.holm_p, found.sign_flip_p, found.g)))
    assert verdict(found, 0.01).decision == "undecided"
    assert verdict(found, 0.01).is_open
    two, three = (compared(tmp_path / str(n), [0.5] * n, [0.5] * n) for n in (2, 3))
    assert verdict(two, 0.01).decision == "undecided"
    assert verdict(three, 0.01).reason == "it makes no difference in any pair"
    often = compared(tmp_path / "often", [0.5] * 5, [0.6] * 5)
    assert not verdict(often, 0.01).is_open


@pytest.mark.parametrize(
    ("baseline", "method"),
    [
        ([0.7, 0.7, 0.7], ["diverged"]),
        ([0.7, "diverged", "diverged"], ["diverged", 0.8, 0.82]),
        ([0.7, "failed"], ["diverged", 0.8]),
    ],
)
def test_not_every_run_of_it_has_diverged(
    baseline: list[float | str], method: list[float | str], tmp_path: Path
) -> None:
    found = verdict(compared(tmp_path, baseline, method), 0.01)
    assert (found.decision, found.reason) == ("undecided", "there is no pair of finished runs")


def test_a_method_that_is_ahead_and_diverged_is_not_decided_by_more_seeds(tmp_path: Path) -> None:
    found = verdict(compared(tmp_path, [0.5] * 4, [0.6, 0.61, 0.6, "diverged"]), 0.01)
    assert not found.is_open


def test_where_seeds_were_added_p_and_interval_say_the_same(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for number in range(40):
        scores = (0.5 + random.normal(0.02, 0.02, random.integers(2, 12))).tolist()
        root = tmp_path / str(number)
        pairs = pairs_of(runs(root, "znorm", scores), runs(root, "baseline", [0.5] * len(scores)))
        found = compare_pairs(pairs, KEY, sequential=True)
        assert found.interval is not None
        outside = found.interval.low > 0 or found.interval.high < 0
        assert (found.p < 0.05) == (found.holm_p < 0.05) == outside
        assert math.isnan(found.sign_flip_p)  # it is for one look


def test_a_run_that_diverged_is_below_all_that_did_not(tmp_path: Path) -> None:
    comparison = compared(tmp_path, [0.5, 0.5, 0.5], [0.6, 0.6, "diverged"])
    assert comparison.improvement == pytest.approx(2 / 3)
    assert len(comparison.differences) == 2
    # The baseline's run beside one that diverged counts: .6 and .61 are above two of three.
    found = compared(tmp_path / "1", [0.9, 0.5, 0.5], ["diverged", 0.6, 0.61])
    assert found.improvement == pytest.approx(4 / 9)
    assert compared(tmp_path / "3", [0.5, 0.5], ["diverged"] * 2).improvement == 0
    assert compared(tmp_path / "2", [0.5, "diverged"], [0.4, 0.4]).improvement == pytest.approx(0.5)


def test_scores_that_are_no_numbers_count_for_nothing(tmp_path: Path) -> None:
    pairs = pairs_of(runs(tmp_path, "znorm", [0.6, 0.7]), runs(tmp_path, "baseline", [0.5, 0.5]))
    assert compare_pairs(pairs, "test_auroc").differences == ()
    found = compare_pairs(pairs, "test_auroc")
    assert found.interval is None
    assert math.isnan(found.p)


def test_the_end_of_a_run_is_read_in_three_ways(tmp_path: Path) -> None:
    one = run_of(
        tmp_path, "znorm", 0, 0.4, epochs=[0.1] * 8 + [0.2, 0.4], best_validation_test_accuracy=0.35
    )
    read = {name: ending(one, KEY) for name, ending in ENDINGS.items()}
    assert read == {
        "last epoch": 0.4,
        "mean of the last tenth": 0.4,
        "epoch best on validation": 0.35,
    }
    assert math.isnan(ENDINGS["epoch best on validation"](one, "test_other"))
    long = recorded(
        tmp_path,
        {"method": "baseline", "epochs": 20},
        [{"train_loss": 1.0, KEY: k / 20} for k in range(1, 21)],
        finished({KEY: 1.0, "train_loss": 1.0}),
    )
    assert ENDINGS["mean of the last tenth"](long, KEY) == pytest.approx((0.95 + 1.0) / 2)
    (long.folder / "events.jsonl").unlink()
    assert math.isnan(ENDINGS["mean of the last tenth"](long, KEY))


def test_runs_that_never_arrive_count_as_such(tmp_path: Path) -> None:
    baseline = runs(tmp_path, "baseline", [0.5] * 4)
    mine = [
        run_of(tmp_path, "znorm", 0, 0.6, epochs=[0.1, 0.5] + [0.6] * 8),
        run_of(tmp_path, "znorm", 1, 0.6, epochs=[0.1] * 6 + [0.6] * 4),
        run_of(tmp_path, "znorm", 2, 0.4),
        run_of(tmp_path, "znorm", 3, "diverged"),
    ]
    found = acceleration(mine, baseline, KEY)
    assert found is not None
    assert [arrival.epoch for arrival in found.arrivals] == [2, 7, None, None]
    assert (found.reached, found.epochs, found.seconds) == (2, 7.0, 7.0)
    slower = acceleration([*mine[:1], *mine[2:]], baseline, KEY)
    assert slower is not None
    assert slower.epochs == slower.seconds == math.inf
    # Two that diverge at once make the others no sooner.
    early = [
        recorded(
            tmp_path / "early",
            {"method": "znorm", "seed": seed, "epochs": 10},
            [],
            {"status": "diverged", "diverged_step": 1, "metrics": {}, "seconds": 0.1},
        )
        for seed in (2, 3)
    ]
    again = acceleration([*mine[:2], *early], baseline, KEY)
    assert again is not None
    assert (again.epochs, again.seconds) == (7.0, 7.0)


def test_the_question_is_of_znorm_or_of_the_first_method(tmp_path: Path) -> None:
    assert Question.of(["baseline", "clip_norm", "znorm"]) == Question("znorm")
    assert Question.of(["clip_norm", "baseline", "clip_value"], 0.05) == Question("clip_norm", 0.05)
    assert Question.of(["baseline"]) is None
    asked = Question("znorm", 0.02, sequential=True)
    asked.write(tmp_path)
    assert Question.read(tmp_path) == asked
    assert Question.read(tmp_path / "nowhere") is None
    later = Question("clip_norm", 0.02).after(asked)
    assert later == Question("clip_norm", 0.02, sequential=True, earlier=(("znorm", 0.02),))
    later.write(tmp_path)
    assert Question.read(tmp_path) == later
    assert later.after(later) == later


@pytest.mark.parametrize("worth", [0, 1, -0.1, math.nan, math.inf, True, "0.1", None])
def test_a_gain_that_is_none_is_named(worth: Any) -> None:
    with pytest.raises(ConfigurationError, match="worth: expected a gain above 0 and below 1"):
        Question("znorm", worth)


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{}",
        '{"method": "baseline", "worth": 0.01, "sequential": false}',
        '{"method": "znorm", "worth": 0.01, "sequential": false, "earlier": [["a", "b"]]}',
        '{"method": 1, "sequential": true}',
        '{"method": "a", "worth": 7}',
        "{",
    ],
)
def test_a_damaged_question_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "question.json").write_text(content)
    with pytest.raises(DataError, match=r"question\.json"):
        Question.read(tmp_path)


def test_numbers_of_a_comparison_are_those_of_its_differences(tmp_path: Path) -> None:
    found = compared(tmp_path, [0.50, 0.52, 0.55, 0.6], [0.52, 0.53, 0.59, 0.6])
    assert found.differences == pytest.approx([0.02, 0.01, 0.04, 0.0])
    assert found.interval == t_interval(found.differences)
    assert found.p == found.holm_p
    assert found.ratio == 1.0
    assert json.dumps(found.sign_flip_p) == "0.25"
