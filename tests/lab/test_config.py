"""Options from files: each is given once, and numbers are what they look like."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lab.kit import recorded
from znorm.lab import api
from znorm.lab.cli import run
from znorm.lab.runs.folder import Run


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a comparison would be called with."""
    found: dict[str, Any] = {}

    def compare(**choices: Any) -> list[Run]:
        found.update(choices)
        return []

    monkeypatch.setattr(api, "compare", compare)
    return found


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("epochs: 1\nepochs: 3\n", "epochs is given twice"),
        ("batch-size: 4\nbatch_size: 8\n", "batch_size is given twice"),
        ("methods:\n  mine: {transform: {ClipNorm: {threshold: 1, threshold: 9}}}\n", "threshold"),
        ('{"epochs": 1, "epochs": 3}', "epochs is given twice"),
        ("limit: 8\nset: {data.limit: 4}\n", "--limit 8 and --set data.limit=4"),
        ("limit: 8\nset: {data: {limit: 4}}\n", "--limit 8 and --set data.limit=4"),
        ("model: resnet20\nset: {model: resnet56}\n", "--model resnet20 and --set model=resnet56"),
        (
            "set: {data: {validation: 0.5}, data.validation: 0.25}\n",
            "data.validation=0.25 and validation: 0.5 of data",
        ),
    ],
)
def test_what_a_file_gives_twice_is_refused(
    content: str,
    message: str,
    tmp_path: Path,
    taken: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(content)
    assert run(["compare", "--config", str(file), "--out", str(tmp_path / "runs")]) == 2
    assert message in capsys.readouterr().err
    assert not taken


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("-7", -7),
        ("0x1F", 31),
        ("0o17", 15),
        ("1e-3", 0.001),
        (".5", 0.5),
        ("1.", 1.0),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
    ],
)
def test_numbers_are_those_of_yaml_1_2(
    text: str, value: Any, tmp_path: Path, taken: dict[str, Any]
) -> None:
    assert run(["compare", "--set", f"data.seed={text}", "--out", str(tmp_path)]) == 0
    assert taken["set"] == {"data.seed": value}
    assert type(taken["set"]["data.seed"]) is type(value)


@pytest.mark.parametrize("verb", ["compare", "reproduce table1", "predict here"])
def test_an_empty_folder_is_not_the_current_one(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*verb.split(), "--out", ""]) == 2
    assert "expected a folder, found nothing" in capsys.readouterr().err


def test_a_file_without_an_end_is_read_as_far_as_it_may_be_long(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["compare", "--config", "/dev/zero"]) == 2
    assert "/dev/zero: too large for keys and values" in capsys.readouterr().err


def failed(root: Path, error: str) -> Run:
    result = {"status": "failed", "error": error, "reason": "error", "metrics": {}}
    return recorded(root, {}, result=result)


def test_what_stands_in_brackets_is_shown_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failed(tmp_path / "[/foo]", "unexpected token [/INST] in [batch] :smile:")
    assert run(["status", str(tmp_path)]) == 0
    shown = "".join(capsys.readouterr().out.replace("│", "").split())
    assert "unexpectedtoken[/INST]in[batch]:smile:" in shown


def test_folders_of_what_cannot_be_read_are_shown_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = failed(tmp_path / ("long-" * 30), "x")
    (one.folder / "result.json").write_text("garbage")
    assert run(["status", str(tmp_path)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert "".join(line.split("│")[1].strip() for line in lines) == str(one.folder)
    assert run(["report", str(tmp_path)]) == 1
    assert "1 folders cannot be read; the page names them" in capsys.readouterr().err


def test_reproductions_within_are_named_and_a_stray_record_hides_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failed(tmp_path / "paper-smoke", "x")
    record = tmp_path / "paper-smoke" / "reproduction.json"
    record.write_text('{"scale": "smoke", "tasks": {}, "cases": []}')
    assert run(["status", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert f"{tmp_path / 'paper-smoke'}: a reproduction of the paper, with a page" in out
    assert "1 failed" not in out
    record.write_text("garbage")
    assert run(["status", str(tmp_path)]) == 0
    assert "1 failed" in capsys.readouterr().out


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser reads everything")
@pytest.mark.parametrize("level", [0, 1])
def test_a_folder_without_permission_is_a_row(level: int, tmp_path: Path) -> None:
    closed = [(one := failed(tmp_path, "x")).folder, one.folder.parent][level]
    closed.chmod(0)
    try:
        rows = api.status(tmp_path)
    finally:
        closed.chmod(0o755)
    assert [(row["status"], row["folder"]) for row in rows] == [("unreadable", str(closed))]


def test_a_folder_that_cannot_be_listed_is_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = failed(tmp_path, "x")
    listed = os.scandir

    def refused(path: str) -> Any:
        if Path(path) == one.folder.parent:
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refused)
    (row,) = api.status(tmp_path)
    assert row["status"] == "unreadable"
    assert row["error"] == f"{one.folder.parent}: cannot be read (Permission denied)"


@pytest.mark.parametrize(
    ("redirect", "code", "said"),
    [
        (">/dev/full", 1, "znorm: the output cannot be written (No space left on device)\n"),
        (">&-", 0, ""),
    ],
)
def test_output_that_cannot_be_written_is_one_line(redirect: str, code: int, said: str) -> None:
    command = f"{sys.executable} -m znorm.lab list tasks {redirect}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, said)
