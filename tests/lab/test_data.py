"""The verbs on data sets, on small files in the official structures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from znorm.lab import data
from znorm.lab.cli import run


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
    assert states == {
        "pcam_mini": "built in",
        "phantom": "built in",
        "cifar10": "missing",
        "patchcamelyon": "missing",
        "lgg_mri": "missing",
    }
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
