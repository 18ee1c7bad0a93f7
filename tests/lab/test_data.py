"""The verbs on data sets, on small files in the official structures."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from znorm.lab import data, tasks
from znorm.lab.cli import run
from znorm.lab.datasets import lgg_mri
from znorm.lab.errors import DataError
from znorm.lab.spec import resolve


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZNORM_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


def write_patient(root: Path, name: str = "TCGA_AA_0001_19990101") -> Path:
    folder = root / "lgg" / "kaggle_3m" / name
    folder.mkdir(parents=True)
    mask = np.zeros((256, 256), np.uint8)
    mask[3:9, 3:9] = 255
    Image.new("RGB", (256, 256)).save(folder / f"{name}_1.tif")
    Image.fromarray(mask).save(folder / f"{name}_1_mask.tif")
    return folder


def test_listing_names_a_part_as_a_part(root: Path) -> None:
    states = {row["name"]: row["state"] for row in data.listing()}
    assert (
        states
        | {
            "pcam_mini": "built in",
            "phantom": "built in",
            "cifar10": "missing",
            "patchcamelyon": "missing",
            "lgg_mri": "missing",
        }
        == states
    )
    assert list(states) == list(tasks.sets())
    write_patient(root)
    row = next(row for row in data.listing() if row["name"] == "lgg_mri")
    assert (row["state"], row["found"]) == ("part", "1 of 110 patients, 1 of 3,929 slices")
    assert row["bytes"] > 0
    assert row["folder"] == str(root / "lgg")


def test_the_verbs_on_the_command_line(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "list", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)][:2] == [
        "pcam_mini",
        "phantom",
    ]
    assert run(["data", "list"]) == 0
    assert "missing" in capsys.readouterr().out
    assert run(["data", "verify"]) == 0
    out = capsys.readouterr().out
    assert "pcam_mini: whole (train 1,304, validation 230, test 380)" in out
    assert "cifar10" not in out
    assert run(["data", "verify", "cifar10"]) == 3
    assert "znorm data get cifar10 downloads it" in capsys.readouterr().err
    assert run(["data", "get", "lgg_mri"]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert "log in at" in captured.err
    assert run(["data", "gt"]) == 2
    assert "did you mean get" in capsys.readouterr().err


def test_a_run_whose_data_is_missing_exits_3_with_the_same_advice(
    root: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for task in ("cifar10", "patchcamelyon", "lgg_mri"):
        assert run(["compare", "--task", task, "--out", str(tmp_path / "runs")]) == 3
        err = capsys.readouterr().err
        assert len(err.splitlines()) == 1
        assert f"znorm data verify {task} then checks them" in err
    assert not (tmp_path / "runs").exists()


def spoil(path: Path, content: bytes) -> None:
    """Other content of the same size, at the same time as the file says."""
    before = path.stat()
    assert len(content) == before.st_size
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def write_patients(root: Path) -> list[Path]:
    return [write_patient(root, f"TCGA_AA_000{n}_19990101") for n in range(1, 9)]


def test_a_mask_that_was_damaged_after_it_was_decoded_is_named(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = write_patients(root)
    assert run(["data", "verify", "lgg_mri"]) == 0
    mask = next(folders[3].glob("*_mask.tif"))
    spoil(mask, b"II*\0" + bytes(mask.stat().st_size - 4))
    capsys.readouterr()
    assert run(["data", "verify", "lgg_mri"]) == 3
    captured = capsys.readouterr()
    assert captured.out.startswith("lgg_mri: wrong")
    assert f"{mask}: expected a picture, found what cannot be decoded" in captured.err
    # Nor is it taken from what was decoded before.
    with pytest.raises(DataError, match=mask.name):
        tasks.load("lgg_mri", resolve({"task": "lgg_mri"}).data)


def test_a_mask_that_marks_something_else_now_is_read_as_it_is(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = write_patients(root)
    assert run(["data", "verify", "lgg_mri"]) == 0
    spec = resolve({"task": "lgg_mri"})
    assert int(tasks.load("lgg_mri", spec.data).train.targets.sum()) % 36 == 0
    for folder in folders:
        mask = next(folder.glob("*_mask.tif"))
        spoil(mask, mask.read_bytes().replace(b"\xff" * 6, b"\xff" * 5 + b"\0"))
    assert run(["data", "verify", "lgg_mri"]) == 0
    assert "held other pixels than the files: decoded anew" in capsys.readouterr().out
    train = tasks.load("lgg_mri", spec.data).train
    assert int(train.targets.sum()) == 30 * len(train)


def test_decoded_images_that_were_overwritten_are_not_used(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_patients(root)
    assert run(["data", "verify", "lgg_mri"]) == 0
    spec = resolve({"task": "lgg_mri"})
    right = tasks.load("lgg_mri", spec.data).fingerprint
    (path,) = (root / ".decoded").glob("*.u8")
    for again in (lambda: run(["data", "verify", "lgg_mri"]), lambda: 0):
        spoil(path, bytes(path.stat().st_size))
        assert again() == 0
        lgg_mri._decoded.cache_clear()  # as another process has it
        assert tasks.load("lgg_mri", spec.data).fingerprint == right
    said = capsys.readouterr().out
    assert f"{path.name} held other pixels than the files: decoded anew" in said


@pytest.mark.parametrize("given", ["~nouser/x", "", None])
def test_a_home_folder_that_is_not_known_is_one_line(
    given: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if given is None:
        monkeypatch.delenv("ZNORM_DATA_DIR")
    else:
        monkeypatch.setenv("ZNORM_DATA_DIR", given)
    # As for a user whom the system does not know.
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    assert run(["data", "list"]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert "set ZNORM_DATA_DIR to" in said


def test_a_wrong_file_is_named_and_makes_the_exit_code_3(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_patient(root)
    next(folder.glob("*_mask.tif")).unlink()
    assert run(["data", "verify", "--json"]) == 3
    captured = capsys.readouterr()
    row = next(row for row in json.loads(captured.out) if row["name"] == "lgg_mri")
    assert row["state"] == "wrong"
    assert "has no mask" in captured.err
