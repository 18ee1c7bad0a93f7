from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from znorm.lab.errors import DataError, DiskFullError, is_disk_full
from znorm.lab.runs.files import write_atomically
from znorm.lab.runs.folder import Run
from znorm.lab.runs.survey import find, survey
from znorm.lab.spec import resolve

EPOCH = '{"event": "epoch", "epoch": 1, "train_loss": 0.5, "test_accuracy": 0.5}'


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.at(tmp_path, resolve({"method": "znorm", "seed": 2}))


def test_the_folder_is_that_of_the_contract(run: Run, tmp_path: Path) -> None:
    expected = tmp_path / "pcam_mini" / "resnet20" / f"znorm__{run.spec.hash}" / "seed-2"
    assert run.folder == expected


def test_a_run_goes_through_its_states(run: Run, tmp_path: Path) -> None:
    assert run.status == "waiting"
    run.announce()
    assert (run.status, [r.spec for r in find(tmp_path)]) == ("waiting", [run.spec])
    with run.claim() as mine:
        assert mine
        run.begin()
        assert run.status == "running"
        run.save_checkpoint(b"state")
        run.log({"event": "epoch", "epoch": 1, "train_loss": 0.5, "test_accuracy": 0.5})
    assert run.status == "interrupted"
    assert list(run.checkpoints()) == [b"state"]
    assert [entry["train_loss"] for entry in run.history] == [0.5]
    run.save_weights(b"weights")
    metrics = {"test_accuracy": 0.5, "train_loss": 0.25}
    run.finish({"status": "done", "metrics": metrics, "seconds": 1.5})
    assert (run.status, run.metrics) == ("done", metrics)
    found = {path.name for path in run.folder.iterdir()}
    assert found >= {"spec.json", "env.json", "events.jsonl", "weights.pt", "result.json"}
    assert not list(run.folder.glob("*.tmp"))
    assert not list(run.checkpoints())  # nothing goes on from it
    environment = json.loads((run.folder / "env.json").read_text())
    assert environment["packages"]["torch"]


def test_a_line_cut_off_by_a_kill_is_passed_over(run: Run) -> None:
    run.announce()
    text = f'{EPOCH}\n{{"event": "epoch", "epo'
    (run.folder / "events.jsonl").write_text(text)
    assert len(run.history) == 1


def test_one_process_at_a_time_and_a_killed_one_holds_nothing(run: Run) -> None:
    run.announce()
    code = (
        "import sys, time; from znorm.lab.runs.folder import Run\n"
        f"with Run.open({str(run.folder)!r}).claim() as mine:\n"
        "    print(mine, flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline().strip() == "True"
    with run.claim() as mine:
        assert not mine
    assert run.status == "running"
    other.kill()
    other.wait()
    with run.claim() as mine:
        assert mine


def test_a_result_that_is_not_finite_is_never_written(run: Run) -> None:
    run.announce()
    with pytest.raises(ValueError, match="not JSON compliant"):
        run.finish({"status": "done", "metrics": {"train_loss": float("nan")}})
    assert run.result is None


def test_a_full_disk_is_said_and_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint.pt"
    write_atomically(path, b"old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match=r"checkpoint\.pt: no space left on the disk"):
        write_atomically(path, b"new" * 10_000)
    assert path.read_bytes() == b"old"
    assert not list(tmp_path.glob("*.tmp"))


def test_only_want_of_space_counts_as_a_full_disk() -> None:
    assert is_disk_full(OSError(errno.ENOSPC, "x"))
    assert not is_disk_full(OSError(errno.EACCES, "x"))


def test_what_is_not_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder of runs"):
        find(tmp_path / "nothing")
    folder = tmp_path / "a" / "b" / "c" / "seed-0"
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text('{"task": 3}')
    runs, (damaged,) = survey(tmp_path)
    assert not runs
    assert "spec.json: not the specification of a run (task: " in damaged.reason
    assert "\n" not in damaged.reason
    run = Run.at(tmp_path / "other", resolve({}))
    run.announce()
    (run.folder / "result.json").write_text("{")
    with pytest.raises(DataError, match=r"result\.json: not JSON"):
        _ = run.result
    for content in ("{}", "[]", "3"):
        (run.folder / "result.json").write_text(content)
        with pytest.raises(DataError, match=r"result\.json: not the result of a run"):
            _ = run.result


def test_lines_that_are_not_events_are_passed_over(run: Run) -> None:
    run.announce()
    lines = b'5\n{"event": "epoch"}\n\xff\xfe\n' + EPOCH.encode() + b"\n"
    (run.folder / "events.jsonl").write_bytes(lines)
    assert [entry["epoch"] for entry in run.history] == [1]


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file/below: cannot be written \(File exists\)"):
        write_atomically(tmp_path / "file" / "below", b"")
