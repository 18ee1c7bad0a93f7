"""Damaged files of a run: each is a row or a line with the right code, and others are served."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from znorm import lab
from znorm.lab.cli import run as call
from znorm.lab.runs import runner
from znorm.lab.runs.files import sealed, unsealed
from znorm.lab.runs.folder import Run
from znorm.lab.runs.survey import find, survey

SMALL: dict[str, Any] = {"epochs": 2, "limit": 24, "methods": ["baseline", "znorm"], "seeds": 1}
ARGUMENTS = ["--epochs", "2", "--limit", "24", "--methods", "baseline,znorm", "--seeds", "1"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of two methods that is done."""
    out = tmp_path_factory.mktemp("whole") / "runs"
    runs = lab.compare(**SMALL, out=out)
    assert [run.status for run in runs] == ["done", "done"]
    lab.predict(runs[1])
    return out


def truncated(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def garbage(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 20)


def bit_turned(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def other_json(path: Path) -> None:
    path.write_text('{"status": "done", "metrics": null, "epoch": [], "a": {"b": 1}}')


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link(path: Path) -> None:
    elsewhere = path.with_name("elsewhere")
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("/nonexistent/file")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGES: list[Callable[[Path], None]] = [
    truncated,
    empty,
    garbage,
    bit_turned,
    other_json,
    folder,
    link,
    dangling,
    pipe,
]
FILES = ["spec.json", "result.json", "events.jsonl", "env.json", "weights.pt", ".lock"]
# Without these a run is none, or has no numbers.
NEEDED = ("spec.json", "result.json")
# One of each kind for the ordinary suite; `make test-all` has the whole table.
OFTEN = [
    ("spec.json", truncated),
    ("spec.json", other_json),
    ("result.json", empty),
    ("result.json", other_json),
    ("result.json", link),
    ("events.jsonl", garbage),
    ("events.jsonl", folder),
    ("env.json", garbage),
    ("weights.pt", bit_turned),
    ("weights.pt", pipe),
    (".lock", link),
]
TABLE = [
    pytest.param(
        name,
        damage,
        id=f"{name}, {damage.__name__}",
        marks=[] if (name, damage) in OFTEN else [pytest.mark.slow],
    )
    for name in FILES
    for damage in DAMAGES
]


@pytest.mark.parametrize(("name", "damage"), TABLE)
def test_a_damaged_file_is_a_row_and_the_other_runs_are_served(
    whole: Path,
    tmp_path: Path,
    name: str,
    damage: Callable[[Path], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "runs"
    shutil.copytree(whole, out)
    (one,) = [run for run in find(out) if run.spec.method == "znorm"]
    if damage is bit_turned and not (one.folder / name).read_bytes():
        pytest.skip("there is no bit to turn")
    damage(one.folder / name)
    capsys.readouterr()

    assert call(["status", str(out)]) == 0
    said = capsys.readouterr()
    assert "baseline" in said.out
    assert not said.err
    rows = lab.status(out)
    assert len(rows) == 2
    # A bit of a file may turn where it means nothing: in white space, or in a name's letter.
    unreadable = [row for row in rows if row["status"] == "unreadable"]
    if name in NEEDED and damage is not bit_turned:
        assert len(unreadable) == 1
        assert name in unreadable[0]["error"]
        assert "\n" not in unreadable[0]["error"]

    assert call(["report", str(out)]) == bool(unreadable)
    assert ("1 folders cannot be read" in capsys.readouterr().err) == bool(unreadable)
    page = (out / "report.html").read_text()
    assert "Baseline" in page
    if unreadable:
        assert "cannot be read" in page
        assert one.folder.relative_to(out).as_posix() in page
    elif name == "events.jsonl" and damage in (truncated, empty, garbage, other_json):
        assert "events.jsonl is damaged" in page

    code = call(["predict", str(one.folder)])
    said = capsys.readouterr()
    if (unreadable and name in NEEDED) or name == "weights.pt":
        assert code in (2, 3)
        assert len(said.err.splitlines()) == 1
        assert said.err.startswith("znorm: ")
    else:
        assert (code, said.err) == (0, "")

    code = call(["compare", *ARGUMENTS, "--out", str(out)])
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    if unreadable:
        assert code == 1
        assert name in said.err
    assert "Baseline" in said.out


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(d, marks=[] if d in (truncated, bit_turned, folder) else [pytest.mark.slow])
        for d in DAMAGES
    ],
    ids=lambda damage: damage.__name__,
)
def test_a_damaged_checkpoint_is_gone_past_or_said(
    whole: Path, tmp_path: Path, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    expected = {run.spec.method: run.result for run in find(whole)}
    out = tmp_path / "runs"
    (one,) = stopped(out)
    kept = one.folder / "checkpoint.pt"
    before = one.folder / "checkpoint.before.pt"
    assert kept.exists()
    assert before.exists()
    damage(kept)
    assert call(["compare", *ARGUMENTS, "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "checkpoint.pt" in said.err
    assert "goes on from the checkpoint before" in said.err
    for run in find(out):
        known = expected[run.spec.method]
        assert known is not None
        assert run.result is not None
        for key in ("batches", "final_weights", "initial_weights", "data"):
            assert run.result["hashes"][key] == known["hashes"][key], key
    # Both of them: the run is left alone, and the other method is trained.
    again = tmp_path / "again"
    (one,) = stopped(again)
    for path in (one.folder / "checkpoint.pt", one.folder / "checkpoint.before.pt"):
        damage(path)
    assert call(["compare", *ARGUMENTS, "--out", str(again)]) == 1
    said = capsys.readouterr()
    assert "checkpoint.pt" in said.err
    assert "move it away" in said.err or "take it away" in said.err
    assert {run.spec.method: run.status for run in find(again)}["baseline"] == "done"


def stopped(out: Path) -> list[Run]:
    """The ZNorm run of the comparison, stopped in its second epoch."""
    from znorm.lab.runs import runner

    asked = 0
    original = runner._Watch.stop_requested

    def stop_requested(self: Any) -> bool:
        nonlocal asked
        if self.run.spec.method == "znorm":
            asked += 1
        return asked == 2

    runner._Watch.stop_requested = stop_requested  # type: ignore[method-assign]
    try:
        with pytest.raises(lab.Interrupted):
            lab.compare(**{**SMALL, "methods": ["znorm"]}, out=out)
    finally:
        runner._Watch.stop_requested = original  # type: ignore[method-assign]
    return find(out)


def test_a_specification_edited_by_hand_is_named(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    shutil.copytree(whole, out)
    (one,) = [run for run in find(out) if run.spec.method == "znorm"]
    path = one.folder / "spec.json"
    content = json.loads(path.read_text())
    content["learning_rate"] = 0.5
    path.write_text(json.dumps(content))
    runs, (damaged,) = survey(out)
    assert [run.spec.method for run in runs] == ["baseline"]
    assert "was changed after the run was made" in damaged.reason


def test_a_run_whose_specification_is_gone_is_named(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    shutil.copytree(whole, out)
    (one,) = [run for run in find(out) if run.spec.method == "znorm"]
    (one.folder / "spec.json").unlink()
    _, (damaged,) = survey(out)
    assert "spec.json: missing" in damaged.reason


@pytest.mark.parametrize(
    "content",
    [
        {"status": "diverged", "metrics": {}},
        {"status": "failed", "metrics": {}},
        {"status": "done", "metrics": {}, "seconds": 1.0},
        {"status": "done", "metrics": {"train_loss": "0.5", "test_accuracy": 1}, "seconds": 1.0},
        {"status": "done", "metrics": {"train_loss": True, "test_accuracy": 1}, "seconds": 1.0},
        {"status": "done", "metrics": {"train_loss": 0.5, "test_accuracy": 1}},
        {"status": "finished", "metrics": {}},
        {"status": ["done"], "metrics": {}},
        {"status": "diverged", "metrics": {}, "diverged_step": "7"},
        {"status": "done", "metrics": {"a": 1}, "hashes": [], "seconds": 1.0},
        [],
        3,
        None,
    ],
    ids=str,
)
def test_json_of_another_content_is_no_result(whole: Path, tmp_path: Path, content: Any) -> None:
    out = tmp_path / "runs"
    shutil.copytree(whole, out)
    (one,) = [run for run in find(out) if run.spec.method == "znorm"]
    (one.folder / "result.json").write_text(json.dumps(content))
    _, (damaged,) = survey(out)
    assert "result.json: not the result of a run" in damaged.reason
    assert call(["report", str(out)]) == 1


@pytest.mark.parametrize(
    "text", ["NaN", "1e999", "[" * 100_000, '{"metrics": {"a": NaN}, "status": "done"}']
)
def test_json_that_is_none_is_no_result(whole: Path, tmp_path: Path, text: str) -> None:
    out = tmp_path / "runs"
    shutil.copytree(whole, out)
    (one,) = [run for run in find(out) if run.spec.method == "znorm"]
    (one.folder / "result.json").write_text(text)
    _, (damaged,) = survey(out)
    assert "result.json: not " in damaged.reason
    assert len(damaged.reason) < 400


def test_weights_of_another_run_are_not_predicted_with(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    shutil.copytree(whole, out)
    one, other = find(out)
    shutil.copy(one.folder / "weights.pt", other.folder / "weights.pt")
    with pytest.raises(lab.DataError, match=r"weights\.pt: damaged: not what the run ended with"):
        lab.predict(other)
    # A result of an earlier version has the hash of the weights alone.
    path = other.folder / "result.json"
    content = json.loads(path.read_text())
    del content["hashes"]["weights_file"]
    path.write_text(json.dumps(content))
    with pytest.raises(lab.DataError, match=r"weights\.pt: damaged"):
        lab.predict(other)
    shutil.copy(find(whole)[1].folder / "weights.pt", other.folder / "weights.pt")
    lab.predict(other)


def test_each_bit_of_a_checkpoint_counts() -> None:
    content = bytes(range(256)) * 3
    whole = sealed(content)
    path = Path("checkpoint.pt")
    assert unsealed(whole, path) == content
    for place in range(0, len(content), 7):
        turned = bytearray(whole)
        turned[place] ^= 1 << place % 8
        with pytest.raises(lab.DataError, match=r"checkpoint\.pt: damaged"):
            unsealed(bytes(turned), path)


def test_a_folder_that_is_removed_while_it_trains_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from znorm.lab.runs import runner

    out = tmp_path / "runs"

    def stop_requested(self: Any) -> bool:
        if self.run.spec.method == "znorm" and self.run.folder.exists():
            shutil.rmtree(self.run.folder)
        return False

    monkeypatch.setattr(runner._Watch, "stop_requested", stop_requested)
    assert call(["compare", *ARGUMENTS, "--out", str(out)]) == 1
    said = capsys.readouterr()
    assert "was removed while the run was at work" in said.err
    assert [(run.spec.method, run.status) for run in find(out)] == [("baseline", "done")]
    assert not list(out.glob("*/*/znorm__*/seed-0/*"))


@pytest.mark.parametrize(
    "event",
    [
        {"epoch": 99},
        {"epoch": 1, "receipt": {"weight": {"x": 1}}},
        {"epoch": 1, "receipt": {"weight": {"norm_before": 1.0}}},
        {"epoch": True},
    ],
    ids=str,
)
def test_a_line_of_events_that_no_run_writes_is_no_epoch(
    whole: Path, tmp_path: Path, event: dict[str, Any]
) -> None:
    out = tmp_path / "runs"
    shutil.copytree(whole, out)
    one = find(out)[0]
    before = one.history
    line = {"event": "epoch", "train_loss": 7.0, "test_accuracy": 0.5, **event}
    with (one.folder / "events.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    assert one.history == before
    assert call(["report", str(out)]) == 0


@pytest.mark.parametrize(
    "change", [{"threads": 100_000}, {"threads": -1}, {"step": -1}, {"history": [{}]}], ids=str
)
def test_a_checkpoint_that_no_run_writes_is_damaged(
    tmp_path: Path, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(watch: Any) -> bool:
        return bool(watch.run.history)

    with monkeypatch.context() as patch:
        patch.setattr(runner._Watch, "stop_requested", stopped)
        with pytest.raises(lab.Interrupted):
            lab.compare(**{**SMALL, "methods": ["znorm"]}, out=tmp_path)
    (one,) = find(tmp_path)
    (content, *_) = one.checkpoints()
    assert isinstance(content, bytes)
    state = torch.load(io.BytesIO(content), weights_only=True)
    state["position"].update(change)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    for name in ("checkpoint.pt", "checkpoint.before.pt"):
        (one.folder / name).write_bytes(sealed(buffer.getvalue()))
    with pytest.raises(lab.DataError, match="not the state of this run"):
        lab.compare(**{**SMALL, "methods": ["znorm"]}, out=tmp_path)
    assert one.result is None
