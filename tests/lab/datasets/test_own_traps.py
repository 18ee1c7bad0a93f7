"""Traps in folders as people have them: each gave a wrong result, or a traceback, once."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lab.own_folders import (
    classes,
    dicom,
    loaded,
    nifti,
    picture,
    saved,
    spec_of,
    table,
    with_masks,
)
from znorm.lab.cli import run as call
from znorm.lab.datasets.own.reading import facts_of, read_slice
from znorm.lab.errors import ConfigurationError, DataError
from znorm.lab.metrics import Cases
from znorm.lab.runs.folder import Run


@pytest.fixture(autouse=True)
def _data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZNORM_DATA_DIR", str(tmp_path / "decoded"))


def volumes(root: Path, axes: tuple[int, int] = (1, 1)) -> Path:
    """Volumes and masks; the first axis of the images and of the masks runs so."""
    nibabel = pytest.importorskip("nibabel")
    random = np.random.default_rng(0)
    for number in range(5):
        for kind, axis in zip(("images", "masks"), axes, strict=True):
            values = random.integers(0, 2, (16, 12, 2)).astype(np.uint8)
            path = root / kind / f"{number}.nii"
            path.parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(values, np.diag([axis, 1.0, 1.0, 1.0])), path)
    return root


def parted(root: Path) -> Path:
    for part, patients in (("train", (0, 1, 2)), ("test", (0, 3))):
        for patient in patients:
            for kind in "ab":
                saved(root / part / kind / f"p{patient}" / "1.png", picture(patient))
    return root


def of_reserved_name(root: Path) -> Path:
    classes(root)
    (root / "cat").rename(root / "truth")
    return root


def of_no_text(root: Path) -> Path:
    classes(root)
    os.rename(root / "cat" / "cat-0.png", os.fsencode(root / "cat") + b"/\xff.png")
    return root


def with_nan(root: Path) -> Path:
    with_masks(root)
    (root / "masks" / "3_mask.png").unlink()
    np.save(root / "masks" / "3_mask.npy", np.full((16, 12), np.nan))
    return root


def complex_volumes(root: Path) -> Path:
    volumes(root)
    nifti(root / "images" / "0.nii", np.ones((16, 12, 2), dtype=np.complex64))
    return root


def palette_dicom(root: Path) -> Path:
    for number in range(6):
        for kind in "ab":
            place = root / kind / f"{number}.dcm"
            dicom(place, picture(number, (16, 12)), PhotometricInterpretation="PALETTE COLOR")
    return root


BAD: dict[str, tuple[Callable[[Path], Path], int, str]] = {
    "a patient in two folders of parts": (parted, 3, "p0 is in train and, with test/a/p0"),
    "masks that run another way than images": (
        lambda root: volumes(root, (1, -1)),
        3,
        "its axes run LAS, and those of its image RAS; save both in one orientation",
    ),
    "a class with the name of a column": (of_reserved_name, 2, "class 'truth' has the name of a"),
    "a name that is no text": (of_no_text, 3, "has a name that is no text; rename it"),
    "a mask with nan": (with_nan, 3, "3_mask.npy: expected a mask, found values that are not fin"),
    "a volume of complex numbers": (complex_volumes, 3, "expected a volume of numbers, found comp"),
    "a palette in DICOM": (palette_dicom, 3, "a palette of colours is not read"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_said(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, code, message = BAD[name]
    folder = make(tmp_path / "own")
    assert call(["compare", "--data", str(folder), "--out", str(tmp_path / "runs")]) == code
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_volumes_that_run_in_two_ways_are_not_mixed(tmp_path: Path) -> None:
    root = volumes(tmp_path / "own")
    nibabel = pytest.importorskip("nibabel")
    for kind in ("images", "masks"):
        values = np.zeros((16, 12, 2), dtype=np.uint8)
        turned = nibabel.Nifti1Image(values, np.diag([-1.0, 1.0, 1.0, 1.0]))
        nibabel.save(turned, root / kind / "9.nii")
    with pytest.raises(DataError, match="its axes run RAS, and those of others LAS"):
        spec_of(root)


def test_a_series_folder_does_not_hide_the_patient(tmp_path: Path) -> None:
    root = tmp_path / "own"
    for number in range(24):
        kind, patient = "ab"[number % 2], f"P{number // 4}"
        pixels = picture(number, (16, 12))
        dicom(root / kind / f"series{number}" / "1.dcm", pixels, PatientID=patient)
    dataset = loaded(root)
    of_parts = [set(one.patients) for one in (dataset.train, dataset.validation, dataset.test)]
    assert set().union(*of_parts) == {f"P{number}" for number in range(6)}
    assert sum(map(len, of_parts)) == 6


def test_dicom_elements_that_were_emptied_count_as_missing(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 900, (16, 12))
    tags = dict.fromkeys(("WindowCenter", "WindowWidth", "RescaleSlope", "RescaleIntercept"), "")
    one = dicom(tmp_path / "a.dcm", pixels, **tags, PixelSpacing=[0, 0])
    facts = facts_of(one)
    assert (facts.window, facts.spacing, facts.kind) == (None, None, "int16")
    assert (read_slice(one)[..., 0] == pixels).all()


@pytest.mark.parametrize(("unit", "scale"), [("mm", 1), ("micron", 1e-3), ("meter", 1e3)])
def test_a_volume_says_its_unit(unit: str, scale: float, tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.Nifti1Image(np.zeros((8, 8, 1), np.uint8), np.diag([0.5, 0.25, 1.0, 1.0]))
    image.header.set_xyzt_units(unit)
    nibabel.save(image, tmp_path / "a.nii")
    assert facts_of(tmp_path / "a.nii").spacing == pytest.approx((0.25 * scale, 0.5 * scale))


def test_colours_of_sixteen_bits_are_not_cut_to_eight(tmp_path: Path) -> None:
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    rows = b"".join(b"\0" + struct.pack(">24H", *range(0, 48000, 2000)) for _ in range(8))
    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    with pytest.raises(DataError, match="16 bits of a colour are not read whole"):
        facts_of(tmp_path / "a.png")


@pytest.mark.parametrize(("asked", "real"), [(0.2, 0.2), (0.3, 1 / 3), (0.4, 0.5), (0.15, 1 / 7)])
def test_a_share_is_the_one_that_is_taken(asked: float, real: float, tmp_path: Path) -> None:
    root = classes(tmp_path / "own", count=42)
    spec = spec_of(root, test_share=asked)
    assert spec.data.test_share == pytest.approx(real)
    tested = len(loaded(root, test_share=asked).test)
    assert tested == pytest.approx(84 * real, abs=1)


def rows_of(root: Path) -> list[dict[str, str]]:
    classes(root)
    return [
        {"file": f"{kind}/{kind}-{number}.png", "label": kind, "group": f"p{number}"}
        for kind in ("cat", "dog")
        for number in range(12)
    ]


def test_an_empty_group_in_a_table_is_refused(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "own")
    rows[5]["group"] = " "
    with pytest.raises(DataError, match="line 7: has no group"):
        spec_of(tmp_path / "own", table(tmp_path, rows))


def test_a_file_by_another_path_is_the_same_file(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "own")
    again = {**rows[0], "file": "dog/../cat/cat-0.png"}
    with pytest.raises(DataError, match=r"line 26: .* is there twice"):
        spec_of(tmp_path / "own", table(tmp_path, [*rows, again]))


def test_whole_paths_below_a_link_are_found(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "own")
    (tmp_path / "link").symlink_to(tmp_path / "own")
    whole = [{**row, "file": str(tmp_path / "own" / row["file"])} for row in rows]
    by_link = spec_of(tmp_path / "link", table(tmp_path, whole))
    assert by_link.data.contents == spec_of(tmp_path / "own", table(tmp_path, rows)).data.contents


def test_the_table_of_parts_is_read_again_whatever_names_there_are(tmp_path: Path) -> None:
    root = tmp_path / "own"
    for number in range(12):
        for kind in ("+", "-", "=x"):
            saved(root / kind / f"{number}.png", picture(number))
    words = ["compare", "--data", str(root), "--epochs", "1", "--device", "cpu", "--plan"]
    assert call([*words, "--out", str(tmp_path / "runs")]) == 0
    again = spec_of(root, tmp_path / "runs" / "parts.csv")
    assert again.data.contents == spec_of(root).data.contents


@pytest.mark.parametrize("labels", [[-5], [70000], [True], {"truth": 1}, {"not marked": 1}])
def test_labels_that_cannot_be_written_again_are_refused(labels: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"data\.labels: expected the values"):
        spec_of(with_masks(tmp_path / "own"), labels=labels)


def test_a_label_that_is_nowhere_has_no_score() -> None:
    truth = torch.tensor([[[1, 1, 0, 0]]], dtype=torch.uint8)
    missed = torch.zeros_like(truth)
    cases = Cases.of(missed, truth, ["a"], labels=["x", "y"])
    assert cases.scores()["f1"] == 0.0  # not the mean of it and of a 1 for y
    invented = Cases.of(truth + truth, truth, ["a"], labels=["x", "y"])
    assert invented.scores()["f1"] == 0.0


def predicted(run: Run, folder: Path, out: Path) -> list[dict[str, str]]:
    assert call(["predict", str(run.folder), str(folder), "--out", str(out)]) == 0
    with open(out / "predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_masks_and_earlier_predictions_are_no_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = with_masks(tmp_path / "own")
    words = ["compare", "--data", str(root), "--methods", "znorm", "--seeds", "1", "--epochs", "1"]
    assert call([*words, "--device", "cpu", "--out", str(tmp_path / "runs")]) == 0
    run = Run.open(next((tmp_path / "runs").rglob("seed-0")))
    found = predicted(run, root, root / "one")
    assert [row["name"] for row in found] == sorted(str(number) for number in range(12))
    assert all(row["dice"] for row in found)
    assert len(predicted(run, root / "images", root / "images" / "two")) == 12
    assert len(predicted(run, root / "images", root / "images" / "three")) == 12
    # Grey values in a mask are not scored as marks.
    saved(tmp_path / "new" / "a.png", picture(0))
    saved(tmp_path / "new" / "a_mask.png", picture(0, (16, 12)))
    assert call(["predict", str(run.folder), str(tmp_path / "new")]) == 3
    assert "a_mask.png: expected a mask of 0 and 255" in capsys.readouterr().err


def test_pictures_of_eight_bits_are_not_read_by_a_window_of_sixteen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "own"
    for number in range(12):
        for kind in "ab":
            wide = picture(number, (16, 12)).astype(np.uint16) * 100
            saved(root / kind / f"{number}.png", wide)
    words = ["compare", "--data", str(root), "--methods", "znorm", "--seeds", "1", "--epochs", "1"]
    assert call([*words, "--device", "cpu", "--out", str(tmp_path / "runs")]) == 0
    run = Run.open(next((tmp_path / "runs").rglob("seed-0")))
    saved(tmp_path / "new" / "a.png", picture(0, (16, 12)))
    assert call(["predict", str(run.folder), str(tmp_path / "new")]) == 3
    assert "as the run's images have, found 8 bits" in capsys.readouterr().err
