"""Each method at its own best: which trials are drawn, what is chosen, and what the page says."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest

from lab.kit import finished
from znorm import lab
from znorm.lab import api
from znorm.lab.cli import run as call
from znorm.lab.errors import ConfigurationError, DataError
from znorm.lab.evidence.question import Question
from znorm.lab.evidence.tuning import TRIAL_SEED, read_tunings, workload_key
from znorm.lab.options import CompareOptions
from znorm.lab.reporting.card import card_of
from znorm.lab.reporting.tables import gather
from znorm.lab.reporting.tuning import tuning_evidence
from znorm.lab.runs.folder import Run
from znorm.lab.runs.progress import Silent
from znorm.lab.runs.survey import find

CHOICES: dict[str, Any] = {
    "methods": ["baseline", "znorm"],
    "seeds": 2,
    "device": "cpu",
    "precision": "float32",
    "limit": 16,
    "epochs": 1,
    "tune": 4,
}
CHOICES_OF_A_RUN = {"device": "cpu", "precision": "float32"}
# The learning rate at which each method scores best.
BEST = {"baseline": 0.001, "znorm": 0.004, "center_only": 0.002, "mine": 0.002}


class Said(Silent):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


def score(method: str, learning_rate: float, schedule: str) -> float:
    off = abs(learning_rate / BEST[method] - 1)
    return 0.9 - 0.1 * min(off, 5.0) + 0.01 * (schedule == "cosine")


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, float]]:
    """Runs end at once, with a score by their learning rate; in the order noted here."""
    order: list[tuple[str, int, float]] = []

    def execute(
        runs: Sequence[Run],
        display: Any,
        workers: Any = None,
        jobs: int = 1,
        checked: Callable[[], object] = lambda: None,
        **_: Any,
    ) -> None:
        checked()
        for one in runs:
            if one.result is not None:
                continue
            spec = one.spec
            order.append((spec.method, spec.seed, spec.learning_rate))
            one.announce()
            if spec.method in BROKEN:
                one.finish({"status": "diverged", "diverged_step": 1, "metrics": {}, "seconds": 1})
                continue
            value = score(spec.method, spec.learning_rate, spec.schedule)
            wobble = 0.001 * (spec.seed % 3)
            metrics = {
                "validation_accuracy": value,
                # The first trial of all looks best on the test, where nobody may look.
                "test_accuracy": value + wobble + 0.2 * (spec.learning_rate == 0.001),
                "train_loss": 1.0,
            }
            one.finish(finished(metrics))

    monkeypatch.setattr(api, "execute", execute)
    return order


BROKEN: set[str] = set()


def by_method(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key.rpartition("__")[0]: value for key, value in values.items()}


def test_all_methods_have_the_same_trials_and_then_their_own_best_over_all_seeds(
    tmp_path: Path, trained: list[tuple[str, int, float]]
) -> None:
    runs = lab.compare(**CHOICES, out=tmp_path)
    (tuning,) = read_tunings(tmp_path).values()
    drawn = by_method(tuning.drawn)["baseline"]
    assert by_method(tuning.drawn) == {"baseline": drawn, "znorm": drawn}
    assert len(drawn) == 4
    assert drawn[0].learning_rate == runs[0].spec.learning_rate == 0.001
    assert all(0.0001 <= one.learning_rate <= 0.01 for one in drawn)
    assert len({one.learning_rate for one in drawn}) == 4
    # The shared setting first, then trials side by side, then each at its best.
    assert [one[1] for one in trained[:4]] == [0, 0, 1, 1]
    assert [one[:2] for one in trained[4:12]] == [
        ("baseline", TRIAL_SEED),
        ("znorm", TRIAL_SEED),
    ] * 4
    for method in BEST.keys() & {"baseline", "znorm"}:
        scores = [score(method, one.learning_rate, one.schedule) for one in drawn]
        assert by_method(tuning.chosen)[method] == drawn[scores.index(max(scores))]
    for run in runs[4:]:
        assert tuning.is_tuned(run.spec)
    of_znorm = [run for run in runs if run.spec.method == "znorm"]
    assert [run.spec.seed for run in of_znorm] == [0, 1, 0, 1]


def test_random_trials_are_optunas(tmp_path: Path, trained: object) -> None:
    lab.compare(**CHOICES, out=tmp_path)
    (tuning,) = read_tunings(tmp_path).values()
    distribution = optuna.distributions.FloatDistribution(0.0001, 0.01, log=True)
    for number, one in enumerate(by_method(tuning.drawn)["znorm"][1:], 1):
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=number))
        expected = study.ask({"learning_rate": distribution}).params["learning_rate"]
        assert one.learning_rate == pytest.approx(expected, rel=0.006)


def test_tpe_goes_where_earlier_trials_scored_and_a_stop_changes_nothing(
    tmp_path: Path, trained: list[tuple[str, int, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    choices = {**CHOICES, "sampler": "tpe", "tune": 20, "seeds": 1}
    lab.compare(**choices, out=tmp_path / "whole")
    (whole,) = read_tunings(tmp_path / "whole").values()
    off = [
        abs(math.log10(one.learning_rate / BEST[method]))
        for method in ("baseline", "znorm")
        for one in by_method(whole.drawn)[method][10:]
    ]
    # Decades, on average. By chance it would be 0.59: 0.5 from the middle of two decades, and
    # (1.6^2 + 0.4^2) / 4 from where znorm's best is.
    assert statistics.fmean(off) < 0.4
    execute, calls = api.execute, 0

    def stopping(*arguments: Any, **more: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 9:
            raise KeyboardInterrupt
        execute(*arguments, **more)

    monkeypatch.setattr(api, "execute", stopping)
    with pytest.raises(KeyboardInterrupt):
        lab.compare(**choices, out=tmp_path / "stopped")
    api.report(tmp_path / "stopped")
    page = (tmp_path / "stopped" / "report.html").read_text()
    assert "14 of 16 trials have ended, and Baseline, ZNorm have not been trained" in page
    lab.compare(**choices, out=tmp_path / "stopped")
    (stopped,) = read_tunings(tmp_path / "stopped").values()
    assert stopped == whole


def test_more_trials_go_on_from_those_that_are_there(
    tmp_path: Path, trained: list[tuple[str, int, float]]
) -> None:
    lab.compare(**CHOICES, out=tmp_path)
    (before,) = read_tunings(tmp_path).values()
    trained.clear()
    lab.compare(**{**CHOICES, "tune": 30}, out=tmp_path)
    (after,) = read_tunings(tmp_path).values()
    drawn, chosen = by_method(after.drawn), by_method(after.chosen)
    assert drawn["znorm"][:4] == by_method(before.drawn)["znorm"]
    assert sum(seed == TRIAL_SEED for _, seed, _ in trained) == 2 * 26
    assert chosen["znorm"] != by_method(before.chosen)["znorm"]
    tables = gather(tmp_path, find(tmp_path), None, read_tunings(tmp_path))
    assert [table.suffix for table in tables] == ["", ", each method tuned"]
    evidence = tuning_evidence(tmp_path, tables[1])
    assert evidence is not None
    assert "runs of what was chosen from fewer trials are in no table" in evidence.lines[-1]
    # A method that comes later has as many.
    said = Said()
    lab.compare(**{**CHOICES, "methods": ["baseline", "center_only"]}, out=tmp_path, display=said)
    (last,) = read_tunings(tmp_path).values()
    assert len(by_method(last.drawn)["center_only"]) == 30
    assert "30 trials a method are there already, and all of them count" in said.texts


def test_the_table_the_card_and_the_page(tmp_path: Path, trained: object) -> None:
    lab.compare(**CHOICES, out=tmp_path)
    tunings = read_tunings(tmp_path)
    shared, tuned = gather(tmp_path, find(tmp_path), Question.read(tmp_path), tunings)
    assert {run.spec.learning_rate for run in shared.runs} == {0.001}
    assert {run.spec.seed for run in (*shared.runs, *tuned.runs)} == {0, 1}
    (tuning,) = tunings.values()
    chosen = by_method(tuning.chosen)
    rates = {row.method: {run.spec.learning_rate for run in row.runs} for row in tuned.rows}
    assert rates == {m: {one.learning_rate} for m, one in chosen.items()}
    card = card_of(tuned)
    assert card is not None
    own = f"ZNorm {chosen['znorm']}"
    assert "the best of 4 trials on validation data: Baseline" in card.lines[-1].text
    assert own in card.lines[-1].text
    evidence = tuning_evidence(tmp_path, tuned)
    assert evidence is not None
    assert tuning_evidence(tmp_path, shared) is None
    _, of_znorm = evidence.methods
    drawn = by_method(tuning.drawn)["znorm"]
    scores = [score("znorm", one.learning_rate, one.schedule) for one in drawn]
    assert [value.text for value in of_znorm.trials] == [f"{100 * one:.2f}" for one in scores]
    assert of_znorm.validation == f"{100 * max(scores):.2f}"
    assert of_znorm.curve[-1] == pytest.approx(max(scores))
    on_test = [one + 0.001 * (TRIAL_SEED % 3) for one in scores]
    on_test[0] += 0.2
    its_own = on_test[scores.index(max(scores))]
    assert of_znorm.test.text == f"{100 * its_own:.2f}"
    assert of_znorm.best_on_test.text == f"{100 * max(on_test):.2f}"
    # 16 images, of which a standard error is the root of p (1 - p) / 16.
    of_sixteen = tuning_evidence(tmp_path, tuned, validation_images=16)
    assert of_sixteen is not None
    best = max(max(one.curve) for one in of_sixteen.methods)
    error = f"{100 * math.sqrt(best * (1 - best) / 16):.2f} points"
    assert [error in line for line in of_sixteen.lines] == [False, True, False]
    page = (tmp_path / "report.html").read_text()
    assert "each method at its own learning rate and schedule" in page
    assert "How methods were tuned" in page
    assert "that is optimism, and no gain" in page


def test_a_method_of_which_no_trial_finished_is_not_tuned(
    tmp_path: Path, trained: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.BROKEN", {"znorm"})
    said = Said()
    lab.compare(**CHOICES, out=tmp_path, display=said)
    assert any("ZNorm: no trial has a score" in text for text in said.texts)
    tables = gather(tmp_path, find(tmp_path), None, read_tunings(tmp_path))
    assert [[row.method for row in table.rows] for table in tables] == [
        ["baseline", "znorm"],
        ["baseline"],
    ]
    assert "How methods were tuned" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tune": 1}, "tune: expected 2 to 1000 trials, found 1"),
        ({"tune": True}, "tune: expected 2 to 1000 trials, found True"),
        ({"sampler": "grid"}, "sampler: expected random or tpe, found 'grid'"),
        ({"lr_range": "1,0.1"}, "lr_range: expected two learning rates"),
        ({"lr_range": "a"}, "lr_range: expected two learning rates"),
        ({"lr_range": 0.1}, "lr_range: expected two learning rates"),
        ({"lr_range": (1e-3, float("inf"))}, "lr_range: expected two learning rates"),
        ({"seeds": [TRIAL_SEED]}, "seeds: 1000000 is that of trials"),
        ({"set": {"data.validation": 0}}, "data.validation is 0; raise it"),
        ({"tune": None, "sampler": "tpe"}, "sampler: is for trials; give tune"),
        ({"tune": None, "lr_range": (1, 2)}, "lr_range: is for trials; give tune"),
    ],
)
def test_what_cannot_be_tuned_is_refused_before_anything_is_trained(
    options: dict[str, Any], message: str, tmp_path: Path, trained: list[object]
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        lab.compare(**{**CHOICES, **options}, out=tmp_path)
    assert not trained
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "tpe"}, "sampler: tpe is another one than trials"),
        ({"lr_range": (0.001, 0.1)}, "lr_range: is another one than trials"),
        ({"lr": 0.5}, "lr, schedule: 0.5 constant are others than trials"),
    ],
)
def test_trials_are_not_mixed_with_others(
    options: dict[str, Any], message: str, tmp_path: Path, trained: list[object]
) -> None:
    lab.compare(**CHOICES, out=tmp_path)
    trained.clear()
    with pytest.raises(ConfigurationError, match=message):
        lab.compare(**{**CHOICES, **options}, out=tmp_path)
    assert not trained
    lab.compare(**CHOICES, sampler="random", lr_range="0.0001,0.01", out=tmp_path)
    assert not trained


@pytest.mark.parametrize(
    "content",
    [
        "nothing",
        "[]",
        '{"a": {"sampler": "grid", "low": 1, "high": 2}}',
        '{"a": {"sampler": "random", "low": 1, "high": 2, "chosen": {"znorm": '
        '{"learning_rate": 1, "schedule": "none"}}}}',
        '{"a": {"sampler": "random", "low": 1, "high": 1}}',
        '{"a": {"sampler": "random", "low": 1, "high": 2, "chosen": {"znorm__0": '
        '{"learning_rate": 1, "schedule": "constant"}}}}',
    ],
)
def test_trials_that_cannot_be_read_are_named(
    content: str, tmp_path: Path, trained: list[object]
) -> None:
    lab.compare(**{**CHOICES, "tune": None}, out=tmp_path)
    (tmp_path / "tuning.json").write_text(content)
    with pytest.raises(DataError, match=r"tuning\.json: not the trials of a comparison"):
        lab.compare(**CHOICES, out=tmp_path)
    api.report(tmp_path)
    assert "tuning.json: not the trials" in (tmp_path / "report.html").read_text()


def test_a_plan_counts_trials_and_what_they_choose(tmp_path: Path, trained: object) -> None:
    options = CompareOptions(**CHOICES, out=tmp_path)
    assert api.planned(options)[1] == (8 + 4, 8 + 4)
    lab.compare(**CHOICES, out=tmp_path)
    # The baseline's best is the shared setting, which is trained already.
    (tuning,) = read_tunings(tmp_path).values()
    shared = by_method(tuning.drawn)["baseline"][0]
    same = 2 * sum(chosen == shared for chosen in tuning.chosen.values())
    assert api.planned(options)[1] == (8 + 4 - same, 0)
    more = CompareOptions(**{**CHOICES, "tune": 6}, out=tmp_path)
    assert api.planned(more)[1] == (12 + 4 - same, 4)


def test_a_search_that_goes_on_is_told_until_it_has_chosen_anew(
    tmp_path: Path, trained: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.compare(**CHOICES, out=tmp_path)
    execute = api.execute

    def stopping(runs: Sequence[Run], *arguments: Any, **more: Any) -> None:
        execute(runs[:9], *arguments, **more)  # another process is at the last ones

    monkeypatch.setattr(api, "execute", stopping)
    said = Said()
    lab.compare(**{**CHOICES, "tune": 6}, out=tmp_path, display=said)
    assert said.texts[-1].startswith("3 trials have not ended, the first in ")
    page = (tmp_path / "report.html").read_text()
    assert "9 of 12 trials have ended" in page
    assert "How methods were tuned" not in page  # nothing is chosen from all of them yet
    assert "Baseline, ZNorm have not been trained at their best; the same command goes on" in page


@pytest.mark.parametrize("broken", ["baseline", "znorm"])
def test_no_other_question_takes_the_place_of_one_that_cannot_be_answered(
    broken: str, tmp_path: Path, trained: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.BROKEN", {broken})
    lab.compare(**{**CHOICES, "methods": ["baseline", "znorm", "center_only"]}, out=tmp_path)
    tables = gather(tmp_path, find(tmp_path), Question.read(tmp_path), read_tunings(tmp_path))
    assert tables[1].tuning is not None
    assert card_of(tables[1]) is None
    evidence = tuning_evidence(tmp_path, tables[1])
    assert evidence is not None
    name = {"baseline": "Baseline", "znorm": "ZNorm"}[broken]
    assert f"Not in this table: {name}, of which no trial has a score" in " ".join(evidence.lines)


def test_two_methods_of_one_name_have_trials_of_their_own(tmp_path: Path, trained: object) -> None:
    for eps in (1e-8, 1e-3):
        own = {"name": "mine", "transform": [{"ZNorm": {"eps": eps}}]}
        lab.compare(**{**CHOICES, "methods": ["baseline", own]}, out=tmp_path)
    (tuning,) = read_tunings(tmp_path).values()
    assert [key.rpartition("__")[0] for key in tuning.drawn] == [
        "baseline",
        "mine",
        "mine",
    ]
    assert {len(drawn) for drawn in tuning.drawn.values()} == {4}


def test_the_key_of_a_workload_stays_what_it_is() -> None:
    spec = lab.resolve(CHOICES_OF_A_RUN)
    other = {"method": "znorm", "seed": 3, "learning_rate": 0.5, "schedule": "cosine"}
    assert workload_key(spec) == workload_key(lab.resolve({**CHOICES_OF_A_RUN, **other}))
    assert workload_key(spec) != workload_key(lab.resolve({**CHOICES_OF_A_RUN, "epochs": 9}))
    assert "null" not in spec.workload  # of keys to come, that nobody sets


def test_no_trial_is_drawn_twice(tmp_path: Path, trained: object) -> None:
    lab.compare(**{**CHOICES, "sampler": "tpe", "tune": 40, "seeds": 1}, out=tmp_path)
    (tuning,) = read_tunings(tmp_path).values()
    assert [len(set(drawn)) for drawn in tuning.drawn.values()] == [40, 40]
    rates = [one.learning_rate for drawn in tuning.drawn.values() for one in drawn]
    assert tuning.low <= min(rates) <= max(rates) <= tuning.high


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (
        "compare --methods baseline,znorm --seeds 1 --limit 16 --epochs 1 --device cpu "
        f"--precision float32 --tune 2 --lr-range 1e-4,1e-3 --out {tmp_path}"
    ).split()
    assert call(words) == 0
    text = capsys.readouterr()
    assert "resnet20, each method tuned" in text.out
    assert "lr 0.001 constant seed 1000000" in text.err
    content = json.loads((tmp_path / "tuning.json").read_text())
    assert [(one["low"], one["high"]) for one in content.values()] == [(1e-4, 1e-3)]
