"""A run that goes on: by whatever number of threads, with the images that it began with."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from znorm import lab
from znorm.lab import tasks
from znorm.lab.cli import run as call
from znorm.lab.datasets import Dataset
from znorm.lab.runs import runner
from znorm.lab.runs.folder import Run
from znorm.lab.runs.grid import grid
from znorm.lab.runs.progress import Silent
from znorm.lab.runs.survey import find

SMALL: dict[str, Any] = {"epochs": 1, "limit": 80, "batch_size": 8, "device": "cpu"}
HASHES = ("data", "initial_weights", "batches", "final_weights")


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Stops:
    """Stops a run after so many steps, each time that it is gone on with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
        self.left = after

        def stop_requested(watch: Any) -> bool:
            self.left -= 1
            return self.left == 0

        monkeypatch.setattr(runner._Watch, "stop_requested", stop_requested)


def trained(
    out: Path, counts: Sequence[int], monkeypatch: pytest.MonkeyPatch, **more: Any
) -> dict[str, str]:
    """The hashes of a run that is begun and gone on with by these numbers of threads."""
    choices = {**SMALL, "methods": ["znorm"], "seeds": 1, **more}
    for count in counts[:-1]:
        torch.set_num_threads(count)
        with monkeypatch.context() as patch:
            Stops(patch, 3)
            with pytest.raises(lab.Interrupted):
                lab.compare(**choices, out=out)
    torch.set_num_threads(counts[-1])
    (one,) = lab.compare(**choices, out=out)
    assert one.result is not None
    assert one.result["threads"] == counts[0]
    assert torch.get_num_threads() == counts[-1]
    return {key: one.result["hashes"][key] for key in HASHES}


@pytest.mark.slow
def test_threads_in_any_order_give_the_bits_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = {n: trained(tmp_path / f"{n}", [n], monkeypatch) for n in (1, 2, 3)}
    for number, order in enumerate(itertools.permutations((1, 2, 3))):
        found = trained(tmp_path / f"order-{number}", order, monkeypatch)
        assert found == alone[order[0]], order


@pytest.mark.slow
def test_jobs_keep_the_threads_of_a_run_and_say_what_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(2)
    choices = {**SMALL, "methods": ["znorm"], "seeds": 3}
    with monkeypatch.context() as patch:
        Stops(patch, 4)
        with pytest.raises(lab.Interrupted):
            lab.compare(**choices, out=tmp_path / "jobs")
    said: list[str] = []

    class Display(Silent):
        def note(self, text: str) -> None:
            said.append(text)

    runs = lab.compare(**choices, jobs=2, out=tmp_path / "jobs", display=Display())
    assert "2 jobs: each run begins with 1 of 2 threads and keeps them" in said[0]
    counts = [(one.result or {})["threads"] for one in runs]
    assert counts == [2, 1, 1]  # the last one does not take all threads for itself
    assert torch.get_num_threads() == 2
    for one, count in zip(runs, counts, strict=True):
        torch.set_num_threads(count)
        alone = lab.run(one.spec, out=tmp_path / f"alone-{one.spec.seed}")
        hashes = [{key: (r.result or {})["hashes"][key] for key in HASHES} for r in (one, alone)]
        assert hashes[0] == hashes[1]


def test_images_that_were_replaced_meanwhile_are_not_mixed_into_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    choices = {**SMALL, "methods": ["znorm"], "seeds": 1}
    with monkeypatch.context() as patch:
        Stops(patch, 3)
        with pytest.raises(lab.Interrupted):
            lab.compare(**choices, out=tmp_path)
    load = tasks.load

    def other(name: str, data: Any) -> Dataset:
        found = load(name, data)
        found.test.images[5] = 255 - found.test.images[5]
        return found

    with monkeypatch.context() as patch:
        patch.setattr(tasks, "load", other)
        with pytest.raises(lab.DataError, match="the images are not those that the run began with"):
            lab.compare(**choices, out=tmp_path)
    (one,) = lab.compare(**choices, out=tmp_path)
    assert one.status == "done"


def test_runs_on_other_images_are_not_paired(tmp_path: Path, monkeypatch: Any) -> None:
    choices = {**SMALL, "seeds": 1, "out": tmp_path}
    lab.compare(**choices, methods=["baseline"])
    load = tasks.load

    def other(name: str, data: Any) -> Dataset:
        found = load(name, data)
        found.test.images[0] = 255 - found.test.images[0]
        return found

    monkeypatch.setattr(tasks, "load", other)
    lab.compare(**choices, methods=["baseline", "znorm"])
    page = (tmp_path / "report.html").read_text()
    assert "other images than the baseline" in page


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def train(*args: Any) -> Any:
        raise error

    monkeypatch.setattr(runner, "train_by_steps", train)


ARGUMENTS = ["compare", "--epochs", "1", "--limit", "16", "--methods", "znorm", "--seeds", "1"]


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (ValueError("a fault"), False),
        (RuntimeError("out of memory"), True),
        (MemoryError(), True),
        (SystemExit(0), False),
    ],
    ids=repr,
)
def test_a_failed_run_is_said_with_its_reason_and_tried_again(
    error: BaseException,
    again: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [*ARGUMENTS, "--out", str(tmp_path)]
    with monkeypatch.context() as patch:
        failing(patch, error)
        assert call(arguments) == 1
    capsys.readouterr()
    code = call(arguments)
    said = capsys.readouterr().err
    (one,) = find(tmp_path)
    if again:
        assert (code, one.status) == (0, "done")
        return
    assert (code, one.status) == (1, "failed")
    assert f"failed before: {type(error).__name__}" in said
    assert "--retry trains it again" in said
    assert call([*arguments, "--retry"]) == 0
    assert find(tmp_path)[0].status == "done"


def test_a_diverged_run_is_left_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*ARGUMENTS, "--out", str(tmp_path)]
    assert call(arguments) == 0
    (one,) = find(tmp_path)
    one.finish({"status": "diverged", "metrics": {}, "diverged_step": 3})
    capsys.readouterr()
    assert call([*arguments, "--retry"]) == 1
    assert "diverged before, at step 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "epochs=1e20"], "epochs: unable to parse"),
        (["--epochs", "1e20"], "'1e20' is not a valid int"),
        (["--batch-size", "10000000"], "batch_size: input should be less than or equal to 1000000"),
        (["--limit", "8", "--set", "data.limit=9"], "--limit 8 and --set data.limit=9: give one"),
        (["--lr", "0.1", "--set", "learning_rate=0.2"], "--lr 0.1 and --set learning_rate=0.2"),
        (["--set", "seed=1", "--set", "seed=2"], "--set seed: is given twice"),
        (["--limit", "8", "--set", "data={limit: 9}"], "--limit 8 and --set data.limit=9"),
    ],
    ids=str,
)
def test_an_option_that_cannot_be_meant_is_refused(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(["compare", *options, "--out", str(tmp_path / "runs")]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_the_time_left_is_without_what_another_process_is_at(tmp_path: Path) -> None:
    from rich.console import Console

    from znorm.lab.runs.progress import Plain

    specs = grid(["baseline", "znorm"], 1, {"epochs": 10})
    runs = [Run.at(tmp_path, spec) for spec in specs]
    display = Plain(Console(file=open("/dev/null", "w")))  # noqa: SIM115
    for one in runs:
        one.announce()
    display.begin(runs)
    display.remaining.start -= 100
    display.remaining.done = 5
    assert display.remaining.text() == "about 5:00 left"
    with runs[0].claim() as mine:
        assert mine
        display.run_ends(0, runs[0], "another process is at it")
    assert display.remaining.text() == "about 1:40 left"
