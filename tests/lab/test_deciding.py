"""Seeds that are added until it is decided, the question that is kept, and what a plan says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lab.kit import PLAIN, finished
from znorm import lab
from znorm.lab import api
from znorm.lab.cli import run as call
from znorm.lab.errors import ConfigurationError
from znorm.lab.evidence.prospects import prospects
from znorm.lab.evidence.question import Question
from znorm.lab.reporting.prospects import prospects_on_terminal
from znorm.lab.runs.folder import Run
from znorm.lab.runs.grid import grid
from znorm.lab.runs.progress import Silent
from znorm.lab.stats import confidence_sequence, half_width

CHOICES: dict[str, Any] = {"device": "cpu", "precision": "float32", "limit": 16, "epochs": 1}


class Said(Silent):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Runs end at once: by ``scores``, and in the order in which they are noted here."""
    order: list[tuple[str, int]] = []

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
            if one.result is None:
                order.append((one.spec.method, one.spec.seed))
                one.announce()
                wobble = 0.01 * (one.spec.seed % 3 - 1)
                score = 0.5 + wobble + GAINS[one.spec.method] * (1 + 0.2 * (one.spec.seed % 2))
                one.finish(finished({"test_accuracy": score, "train_loss": 1.0}))

    monkeypatch.setattr(api, "execute", execute)
    return order


GAINS = {"baseline": 0.0, "znorm": 0.05, "gradient_clipping": 0.0}


def test_pairs_are_added_until_the_question_is_decided(
    tmp_path: Path, trained: list[tuple[str, int]]
) -> None:
    said = Said()
    runs = lab.compare(
        methods=["baseline", "znorm", "gradient_clipping"],
        seeds=2,
        until="decided",
        out=tmp_path,
        display=said,
        **CHOICES,
    )
    gains = [0.05, 0.06, 0.05, 0.06, 0.05, 0.06]
    looks = [confidence_sequence(gains[:count]).low > 0 for count in range(2, 7)]
    needed = 2 + looks.index(True)
    assert set(trained[:6]) == {(method, seed) for method in GAINS for seed in (0, 1)}
    # Of the question's two methods alone.
    assert trained[6:] == [(m, s) for s in range(2, needed) for m in ("baseline", "znorm")]
    assert len(runs) == 6 + 2 * (needed - 2)
    assert said.texts[-1].startswith("Adopt ZNorm: it is ahead of the baseline.")
    assert all(text.startswith("Undecided") for text in said.texts[:-1])
    assert Question.read(tmp_path) == Question("znorm", 0.01, sequential=True)
    page = (tmp_path / "report.html").read_text()
    assert "Adopt ZNorm: it is ahead of the baseline." in page
    assert "Seeds were added until it was decided" in page
    # The same command again trains nothing, and says the same.
    before = list(trained)
    lab.compare(
        methods=["baseline", "znorm", "gradient_clipping"],
        seeds=2,
        until="decided",
        out=tmp_path,
        **CHOICES,
    )
    assert trained == before


def test_a_budget_ends_it(
    tmp_path: Path, trained: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(GAINS, "znorm", 0.001)
    said = Said()
    lab.compare(
        methods=["baseline", "znorm"],
        seeds=2,
        until="decided",
        budget=1e-9,
        worth=0.0011,
        out=tmp_path,
        display=said,
        **CHOICES,
    )
    assert len(trained) == 4
    assert said.texts[-1] == "the budget of 1e-09 minutes is spent, and nothing is decided"


@pytest.mark.parametrize(
    ("choices", "error"),
    [
        ({"until": "tomorrow"}, "until: expected decided, found 'tomorrow'"),
        ({"budget": 0}, "budget: expected minutes above 0, found 0"),
        ({"worth": 7}, "worth: expected a gain above 0 and below 1, such as 0.01 for a point"),
        ({"until": "decided", "methods": ["znorm"]}, "until: needs the baseline and a method"),
    ],
)
def test_what_cannot_be_asked_is_named_before_anything_is_made(
    choices: dict[str, Any], error: str, tmp_path: Path, trained: list[Any]
) -> None:
    with pytest.raises(ConfigurationError, match=error):
        lab.compare(**{"methods": ["baseline", "znorm"], "out": tmp_path, **CHOICES, **choices})
    assert not trained
    assert not (tmp_path / "question.json").exists()


def test_a_question_stands_and_another_one_in_its_place_is_said(
    tmp_path: Path, trained: list[Any]
) -> None:
    def asked(**more: Any) -> tuple[Question | None, list[str]]:
        said = Said()
        lab.compare(
            methods=["baseline", "znorm"], seeds=2, out=tmp_path, display=said, **CHOICES, **more
        )
        return Question.read(tmp_path), said.texts

    assert asked(worth=0.02) == (Question("znorm", 0.02), [])
    assert asked() == (Question("znorm", 0.02), [])
    question, said = asked(worth=0.03)
    before = (("znorm", 0.02),)
    assert question == Question("znorm", 0.03, earlier=before)
    assert said == [
        "the question was of znorm and a gain of 0.02, and is now of znorm and 0.03: answers to "
        "later questions count less"
    ]
    question, _ = asked(until="decided", budget=1e-9)
    assert question == Question("znorm", 0.03, sequential=True, earlier=before)
    assert asked()[0] == question  # what was looked at as seeds came stays so
    page = (tmp_path / "report.html").read_text()
    assert "Another question was asked here before: of ZNorm, a gain of 2 points." in page
    # Nor by a question of another method.
    lab.compare(methods=["baseline", "gradient_clipping"], seeds=2, out=tmp_path, **CHOICES)
    last = Question.read(tmp_path)
    assert last is not None
    assert (last.method, last.sequential) == ("gradient_clipping", True)
    assert last.earlier == (("znorm", 0.02), ("znorm", 0.03))


@pytest.mark.parametrize(
    ("ends", "last"),
    [
        ({"baseline": "failed", "znorm": "failed"}, "3 times more seeds have brought no pair"),
        ({"baseline": "diverged", "znorm": "diverged"}, "3 times more seeds have brought no pair"),
        ({"znorm": "diverged"}, "Do not adopt ZNorm: every run of it diverged"),
        ({"znorm": "nobody's"}, "3 times more seeds have brought no pair"),
        ({"baseline": "nobody's", "znorm": "nobody's"}, "3 times more seeds have brought no pair"),
        ({"znorm": "0.55"}, "Undecided: all pairs have the same difference"),
        ({"znorm": "one diverged"}, "Undecided: it is ahead where it finished"),
    ],
)
def test_it_ends_where_more_seeds_cannot_decide(
    ends: dict[str, str], last: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def execute(runs: Sequence[Run], *_: Any, **__: Any) -> None:
        for one in runs:
            seed, end = one.spec.seed, ends.get(one.spec.method, "0.5")
            one.announce()
            if one.result is not None or end == "nobody's":  # another process has it
                continue
            if end == "one diverged":
                end = "diverged" if seed == 1 else str(0.9 + 0.001 * (seed % 3))
            if end == "diverged":
                one.finish({"status": end, "diverged_step": 1, "metrics": {}, "seconds": 1.0})
            elif end == "failed":
                one.finish({"status": end, "error": "a fault", "metrics": {}, "seconds": 1.0})
            else:
                one.finish(finished({"test_accuracy": float(end), "train_loss": 1.0}))

    monkeypatch.setattr(api, "execute", execute)
    said = Said()
    runs = lab.compare(
        methods=["baseline", "znorm"],
        seeds=2,
        until="decided",
        out=tmp_path,
        display=said,
        **CHOICES,
    )
    assert said.texts[-1].startswith(last)
    assert len(runs) <= 20


def test_a_damaged_question_costs_a_report_nothing_but_a_word(
    tmp_path: Path, trained: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    lab.compare(methods=["baseline", "znorm"], seeds=2, out=tmp_path, **CHOICES)
    (tmp_path / "question.json").write_text("[")
    assert call(["report", str(tmp_path)]) == 1
    page = (tmp_path / "report.html").read_text()
    assert "question.json" in page
    assert "Undecided: the interval holds both 0 and a gain." in page


def test_the_command_line_ends_in_the_answer_and_a_plan_in_what_it_can_show(
    tmp_path: Path, trained: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", "--methods", "baseline,znorm", "--seeds", "4", "--device", "cpu"]
    words += ["--precision", "float32", "--limit", "16", "--epochs", "1", "--out", str(tmp_path)]
    assert call(words) == 0
    assert (
        "Adopt ZNorm: it is ahead of the baseline. Test accuracy against the baseline: +5.50 "
        "points (95 %: +4.58 to +6.42), 4 pairs of runs."
    ) in capsys.readouterr().out
    assert call([*words, "--plan", "--worth", "0.02"]) == 0
    out = capsys.readouterr().out
    assert "What seeds can show: ZNorm against the baseline, resnet20" in out
    assert "By the spread of the runs at hand, 0.58 points" in out


def test_what_seeds_can_show_is_what_statistics_say() -> None:
    first, *further = prospects(4, 0.02, 0.01)
    assert first.pairs == 4
    assert [one.pairs for one in further] == [5, 8, 12, 20, 30, 50]
    assert first.smallest_p == 0.125
    assert first.half == half_width(4, 0.02)
    assert further[-1].power > first.power


def test_a_plan_takes_the_spread_of_runs_at_hand(tmp_path: Path, trained: list[Any]) -> None:
    specs = grid(["baseline", "znorm"], 3, {**PLAIN, "data.limit": 16, "epochs": 1})
    (before,) = prospects_on_terminal(specs, tmp_path, [])
    assert "which no runs at hand tell yet" in str(before.caption)
    lab.compare(methods=["baseline", "znorm"], seeds=3, out=tmp_path, **CHOICES)
    (after,) = prospects_on_terminal(specs, tmp_path, [])
    assert "By the spread of the runs at hand, 0.58 points" in str(after.caption)
    assert prospects_on_terminal(grid(["znorm"], 3, PLAIN), tmp_path, []) == []
