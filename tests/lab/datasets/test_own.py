"""Folders of the user's own in each form, and what is wrong with them, from images made here."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lab.own_folders import (
    classes,
    dicom,
    everything,
    loaded,
    nifti,
    picture,
    saved,
    spec_of,
    table,
    with_masks,
)
from znorm.lab import tasks
from znorm.lab.cli import run as call
from znorm.lab.datasets.own.forms import MOST_CLASSES
from znorm.lab.datasets.own.reading import facts_of, read_slice
from znorm.lab.datasets.own.rule import Rule
from znorm.lab.errors import ConfigurationError, DataError


@pytest.fixture(autouse=True)
def _data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZNORM_DATA_DIR", str(tmp_path / "decoded"))


def test_classes_as_folders(tmp_path: Path) -> None:
    dataset = loaded(classes(tmp_path / "own"))
    assert dataset.classes == ("cat", "dog")
    found = everything(dataset)
    assert len(found) == 24
    for name, (pixels, target, _) in found.items():
        number = int(name.rpartition("-")[2].removesuffix(".png"))
        kind = name.partition("/")[0]
        assert target == ("cat", "dog").index(kind)
        expected = picture(number + 100 * (kind == "dog"))
        assert (pixels.permute(1, 2, 0).numpy() == expected).all()
    # A fifth is the test part, and a fifth of the rest the validation part; both classes alike.
    counts = [split.class_counts(2) for split in (dataset.train, dataset.validation, dataset.test)]
    assert [sum(count) for count in counts] == [15, 4, 5]
    assert all(abs(one - other) <= 1 for one, other in counts)
    assert any("Every image is a group of its own" in note for note in dataset.notes)


def test_no_patient_is_in_two_parts_and_each_is_tested_in_one_fold(tmp_path: Path) -> None:
    root = classes(tmp_path / "own", count=30, patients=10)
    tested: list[str] = []
    for fold in range(5):
        dataset = loaded(root, fold=fold)
        groups = [
            set(split.patients) for split in (dataset.train, dataset.validation, dataset.test)
        ]
        assert not groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2]
        tested += sorted(groups[2])
    assert sorted(tested) == [f"p{number}" for number in range(10)]


def test_parts_of_the_users_own(tmp_path: Path) -> None:
    root = tmp_path / "own"
    for part, start in (("train", 0), ("val", 20), ("test", 30)):
        for name in ("cat", "dog"):
            for number in range(start, start + 4):
                saved(root / part / name / f"{number}.png", picture(number))
    found = everything(loaded(root))
    assert {name.split("/")[0]: part for name, (_, _, part) in found.items()} == {
        "train": "train",
        "val": "validation",
        "test": "test",
    }


def test_masks_beside_images(tmp_path: Path) -> None:
    dataset = loaded(with_masks(tmp_path / "own"), size=[16, 12])
    for name, (pixels, target, _) in everything(dataset).items():
        number = int(Path(name).stem)
        assert (pixels.permute(1, 2, 0).numpy() == picture(number)).all()
        marked = np.zeros((16, 12), dtype=np.uint8)
        marked[:5, : number % 4] = 1
        assert (target.numpy() == marked).all()
    # Nets for masks halve a picture five times.
    assert loaded(tmp_path / "own").image_size == (32, 32)


def test_a_table_of_files(tmp_path: Path) -> None:
    root = classes(tmp_path / "own", count=4)
    rows = [
        {
            "File": f"{name}/{name}-{number}.png",
            "Label": "new" if number % 2 else "old",
            "patient_id": f"p{number}",
            "Split": ("train", "train", "test", "test")[number],
        }
        for name in ("cat", "dog")
        for number in range(4)
    ]
    # Patients 0 and 1 are for training, one of them for validation then.
    rows += [
        {"File": f"more/{n}.png", "Label": k, "patient_id": f"q{n}", "Split": "train"}
        for n, k in enumerate(("new", "old") * 4)
    ]
    for number in range(8):
        saved(root / "more" / f"{number}.png", picture(number))
    dataset = loaded(root, table(tmp_path, rows))
    assert dataset.classes == ("new", "old")
    assert set(dataset.test.patients) == {"p2", "p3"}
    assert any("The parts are your own." in note for note in dataset.notes)


def test_volumes_are_slices_of_one_group(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    volumes = {}
    for number in range(10):
        volume = random.integers(-1000, 2000, (12, 16, 3)).astype(np.int16)
        marks = (random.random((12, 16, 3)) < 0.3).astype(np.uint8)
        volumes[number] = volume, marks
        nifti(tmp_path / "own" / "images" / f"{number}.nii.gz", volume)
        nifti(tmp_path / "own" / "masks" / f"{number}.nii.gz", marks)
    facts = facts_of(tmp_path / "own" / "images" / "0.nii.gz")
    assert (facts.height, facts.width, facts.slices, facts.kind) == (16, 12, 3, "int16")
    assert facts.spacing == pytest.approx((0.7, 0.5))
    dataset = loaded(tmp_path / "own", size=[16, 12], window=[-1000, 2000])
    assert dataset.channels == 1
    for name, (pixels, target, _) in everything(dataset).items():
        number, one = int(Path(name).name.partition(".")[0]), int(name[-3:])
        volume, marks = volumes[number]
        expected = np.round((volume[:, :, one].T.astype(np.float64) + 1000) * 255 / 3000)
        assert np.abs(pixels[0].numpy() - expected).max() <= 1
        assert (target.numpy() == marks[:, :, one].T).all()
    groups = [set(split.patients) for split in (dataset.train, dataset.test)]
    assert not groups[0] & groups[1]
    assert all(group.endswith(".nii.gz") for group in groups[0])


def test_dicom_files_have_their_window_and_their_patient(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    written = {}
    for number in range(24):
        kind = ("ill", "well")[number % 2]
        pixels = random.integers(0, 1000, (16, 12))
        name = f"{kind}/{number}.dcm"
        written[name] = pixels
        tags = {"PatientID": f"p{number // 2}", "WindowCenter": 0, "WindowWidth": 1000}
        dicom(tmp_path / "own" / name, pixels, **tags)
    one = tmp_path / "own" / "ill" / "0.dcm"
    facts = facts_of(one)
    assert (facts.height, facts.width, facts.spacing) == (16, 12, (0.5, 0.7))
    assert (facts.patient, facts.window) == ("p0", (-500.0, 500.0))
    assert (read_slice(one)[..., 0] == 2 * written["ill/0.dcm"] - 1000).all()
    spec = spec_of(tmp_path / "own")
    assert spec.data.window == (-500.0, 500.0)
    dataset = tasks.load(spec.task, spec.data)
    for name, (pixels, _, _) in everything(dataset).items():
        expected = np.clip((2.0 * written[name] - 1000 + 500) * 255 / 1000, 0, 255)
        assert np.abs(pixels[0].numpy() - expected).max() <= 0.51
    assert len(set(dataset.train.patients)) < len(dataset.train)


def test_sixteen_bits_and_signs_are_windowed_by_training_images(tmp_path: Path) -> None:
    root = tmp_path / "own"
    for number in range(12):
        for name, offset in (("a", 0), ("b", 500)):
            wide = picture(number, (16, 12)).astype(np.uint16) * 10 + offset
            saved(root / name / f"{number}.png", wide)
    low, high = spec_of(root).data.window or (0, 0)
    assert 0 <= low < 150
    assert 2900 < high <= 3060
    for path in sorted(root.rglob("*.png")):
        values = read_slice(path).astype(np.int32) - 2000
        np.save(path.with_suffix(".npy"), values.astype(np.int16))
        path.unlink()
    signed = spec_of(root).data.window
    assert signed == pytest.approx((low - 2000, high - 2000))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "RGB"])
def test_pictures_as_they_come(mode: str, tmp_path: Path) -> None:
    image = Image.fromarray(picture(0)).convert(mode)
    image.save(tmp_path / "a.png")
    facts, pixels = facts_of(tmp_path / "a.png"), read_slice(tmp_path / "a.png")
    assert pixels.shape == (16, 12, facts.channels) == (facts.height, facts.width, facts.channels)
    expected = image.convert("RGBA").convert("RGB") if facts.channels == 3 else image.convert("L")
    assert (pixels.squeeze() == np.asarray(expected)).all()


def test_the_rule_by_hand() -> None:
    grey = np.array([[0, 100], [200, 300]], dtype=np.uint16)[..., None]
    made = Rule(3, (100.0, 200.0), (2, 2)).pictures(grey)[0]
    assert made.shape == (2, 2, 3)
    assert made[..., 0].tolist() == [[0, 0], [255, 255]]
    colour = np.full((4, 4, 3), (255, 0, 100), dtype=np.uint8)
    assert Rule(1, None, (2, 2)).pictures(colour)[0].tolist() == [[[88]] * 2] * 2  # 76.2 + 11.4
    steps = np.repeat(np.arange(4, dtype=np.uint8) * 80, 4).reshape(4, 4)[..., None]
    halved = Rule(1, None, (2, 2)).pictures(steps)[0, :, 0, 0].astype(int)
    assert abs(halved - [40, 200]).max() <= 20  # what lies between, not every second row
    mask = np.zeros((4, 4), dtype=np.uint8)
    mask[:2] = 1
    assert Rule(1, None, (2, 2)).masks(mask)[0].tolist() == [[1, 1], [0, 0]]
    assert Rule(1, None, (8, 8)).masks(mask)[0].sum() == 32


def test_a_folder_that_moves_is_the_same_and_one_that_changes_is_not(tmp_path: Path) -> None:
    spec = spec_of(classes(tmp_path / "own"))
    (tmp_path / "own").rename(tmp_path / "moved")
    moved = spec_of(tmp_path / "moved")
    assert moved.data.contents == spec.data.contents
    with pytest.raises(DataError, match="no such folder of images"):
        tasks.load(spec.task, spec.data)
    saved(tmp_path / "moved" / "cat" / "another.png", picture(7))
    with pytest.raises(DataError, match="holds other files, labels or groups than the runs"):
        tasks.load(moved.task, moved.data)


def empty(root: Path) -> Path:
    root.mkdir(parents=True)
    return root


def one_class(root: Path) -> Path:
    saved(root / "cat" / "1.png", picture(0))
    return root


def changed(root: Path, change: Callable[[Path], object]) -> Path:
    classes(root)
    change(root)
    return root


def masks_changed(root: Path, change: Callable[[Path], object]) -> Path:
    with_masks(root)
    change(root)
    return root


def many(root: Path) -> Path:
    for number in range(MOST_CLASSES + 1):
        saved(root / f"c{number}" / "1.png", picture(0))
    return root


BAD: dict[str, tuple[Callable[[Path], Path], int, str]] = {
    "no folder": (lambda root: root, 3, "no such folder of images"),
    "an empty folder": (empty, 2, "no images in it"),
    "one class only": (one_class, 2, "one class only, 'cat'"),
    "a class with one image": (
        lambda root: changed(root, lambda r: saved(r / "eel" / "1.png", picture(0))),
        2,
        "class 'eel' has 1 image; three or more are needed",
    ),
    "images beside the classes": (
        lambda root: changed(root, lambda r: saved(r / "1.png", picture(0))),
        2,
        "1.png and 0 more images lie beside the folders of the classes",
    ),
    "mixed channels": (
        lambda root: changed(root, lambda r: saved(r / "cat" / "z.png", picture(0, (16, 12)))),
        3,
        "z.png: channels: 1, and 3 in cat-0.png; give data.channels",
    ),
    "mixed depth": (
        lambda root: changed(
            root,
            lambda r: np.save(r / "cat" / "z.npy", picture(0).astype(np.int16)),
        ),
        3,
        "z.npy: numbers of a pixel: int16, and uint8 in cat-0.png; give data.window",
    ),
    "a mask of another size": (
        lambda root: masks_changed(
            root, lambda r: saved(r / "masks" / "3_mask.png", np.zeros((9, 9), dtype=np.uint8))
        ),
        3,
        "3_mask.png: expected 16x12 pixels, as its image has, found 9x9",
    ),
    "a mask with grey values": (
        lambda root: masks_changed(
            root, lambda r: saved(r / "masks" / "3_mask.png", picture(0, (16, 12)))
        ),
        3,
        "3_mask.png: expected a mask of 0 and 255, of 0 and 1, or of 0 to a number of classes",
    ),
    "a mask without an image": (
        lambda root: masks_changed(root, lambda r: (r / "images" / "3.png").unlink()),
        3,
        "3_mask.png: has no image; expected images/3 with an ending",
    ),
    "an image without a mask": (
        lambda root: masks_changed(root, lambda r: (r / "masks" / "3_mask.png").unlink()),
        3,
        "3.png: has no mask; expected masks/3 or masks/3_mask",
    ),
    "no masks at all": (
        lambda root: masks_changed(root, lambda r: (r / "masks").rename(r / "others")),
        2,
        "has images and no masks beside it",
    ),
    "a corrupt file": (
        lambda root: changed(root, lambda r: (r / "cat" / "z.png").write_bytes(b"\x89PNG\r\nno")),
        3,
        "z.png: expected a picture, found what cannot be decoded",
    ),
    "a file that is cut off": (
        lambda root: changed(
            root,
            lambda r: (r / "cat" / "cat-1.png").write_bytes(
                (r / "cat" / "cat-1.png").read_bytes()[:200]
            ),
        ),
        3,
        "cat-1.png: expected a picture, found what cannot be decoded",
    ),
    "an empty file": (
        lambda root: changed(root, lambda r: (r / "cat" / "z.png").write_bytes(b"")),
        3,
        "z.png: expected an image, found an empty file",
    ),
    "too many classes": (many, 2, f"201 classes; {MOST_CLASSES} at most: are these folders of"),
    "a link to a folder": (
        lambda root: changed(root, lambda r: (r / "dog" / "more").symlink_to(r / "cat")),
        3,
        "more: a link to a folder, which is not followed",
    ),
    "one patient for all": (
        lambda root: classes(root, patients=1),
        2,
        "1 group, such as a patient, is too few to be divided",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_with_a_folder_is_said(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, code, message = BAD[name]
    folder = make(tmp_path / "own")
    assert call(["compare", "--data", str(folder), "--out", str(tmp_path / "runs")]) == code
    text = capsys.readouterr().err
    assert message in text
    assert text.startswith("znorm: ")
    assert text.count("\n") == 1
    assert not (tmp_path / "runs").exists()


ROW = {"file": "cat/cat-0.png", "label": "a", "group": "p", "part": "train"}
BAD_TABLES: dict[str, tuple[list[dict[str, str]], int, str]] = {
    "no column of files": ([{"label": "a"}], 2, "has no column file; found label"),
    "no label and no mask": ([{"file": "cat/cat-0.png"}], 2, "has neither label nor mask"),
    "label and mask": ([{**ROW, "mask": "cat/cat-0.png"}], 2, "has both label and mask"),
    "a file that is not there": ([{**ROW, "file": "cat/no.png"}], 3, "line 2: cat/no.png is not"),
    "a file that lies elsewhere": ([{**ROW, "file": "../x.png"}], 3, "'../x.png' is no file in"),
    "a file twice": ([ROW, ROW], 3, "line 3: cat/cat-0.png is there twice"),
    "no label in a row": ([{**ROW, "label": ""}], 3, "line 2: has no label"),
    "an unknown part": ([{**ROW, "part": "rest"}], 3, "line 2: part 'rest'; expected train"),
    "one patient in two parts": (
        [ROW, {**ROW, "file": "dog/dog-0.png", "part": "test"}],
        3,
        "line 3: p is in test and, above, in train; a group, such as a patient, belongs to one",
    ),
    "of no kind that is read": ([{**ROW, "file": "note.txt"}], 3, "note.txt is of no kind"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_what_is_wrong_with_a_table_is_said(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, code, message = BAD_TABLES[name]
    root = classes(tmp_path / "own")
    (root / "note.txt").write_text("a")
    listed = table(tmp_path, rows)
    words = ["compare", "--data", str(root), "--table", str(listed)]
    assert call([*words, "--out", str(tmp_path / "runs")]) == code
    text = capsys.readouterr().err
    assert message in text
    assert text.count("\n") == 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"size": 4}, "data.size: expected pixels on a side"),
        ({"size": [16]}, "data.size: expected pixels on a side"),
        ({"channels": 2}, "data.channels: expected 1 or 3, found 2"),
        ({"window": [3, 1]}, "data.window: expected two values, the lower one first"),
        ({"test_share": 0.9}, "data.test_share: expected a share from 0.02 to 0.5"),
        ({"fold": 5}, "data.fold: expected 0 to 4, found 5"),
        ({"fold": -1}, "data.fold: expected a whole number from 0, found -1"),
        ({"contents": "0"}, "holds other files, labels or groups"),
    ],
)
def test_choices_that_are_none_are_named(
    data: dict[str, Any], message: str, tmp_path: Path
) -> None:
    root = classes(tmp_path / "own")
    with pytest.raises((ConfigurationError, DataError), match=message.replace(".", r"\.")):
        spec_of(root, **data)


def test_from_a_folder_to_a_report_and_predictions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = classes(tmp_path / "own", patients=6)
    words = ["compare", "--data", str(root), "--methods", "baseline,znorm", "--seeds", "1"]
    words += ["--epochs", "1", "--device", "cpu", "--precision", "float32"]
    assert call([*words, "--out", str(tmp_path / "runs")]) == 0
    page = (tmp_path / "runs" / "report.html").read_text()
    assert "Your images, a folder for each class: 24 of 16x12 pixels" in page
    assert "Split by group, such as a patient" in page
    run = next((tmp_path / "runs").rglob("seed-0"))
    assert call(["predict", str(run)]) == 0
    rows = (run / "predictions" / "test" / "predictions.csv").read_text().splitlines()
    assert rows[0] == "name,truth,predicted,cat,dog"
    # Others of another size and kind are read by the run's rule.
    for number in range(3):
        saved(tmp_path / "new" / f"{number}.png", picture(number, (40, 50)))
    assert call(["predict", str(run), str(tmp_path / "new")]) == 0
    rule = Rule(3, None, (16, 12))
    by_hand = tmp_path / "by hand"
    for number in range(3):
        saved(by_hand / f"{number}.png", rule.pictures(picture(number, (40, 50))[..., None])[0])
    assert call(["predict", str(run), str(by_hand)]) == 0
    tables = [path.read_text() for path in sorted((run / "predictions").rglob("predictions.csv"))]
    assert len(tables) == 3
    assert tables[0] == tables[1]  # by hand and new; the third is the test part
    np.save(tmp_path / "new" / "deep.npy", np.zeros((4, 4), dtype=np.int16))
    saved(tmp_path / "deep" / "0.png", picture(0, (16, 12)).astype(np.uint16) * 200)
    assert call(["predict", str(run), str(tmp_path / "deep")]) == 3
    assert "expected 8 bits a value, as the run's images have, found uint16" in (
        capsys.readouterr().err
    )


def test_dicom_files_that_are_white_where_low_are_turned_round(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(-500, 500, (16, 12))
    tags = {"RescaleSlope": 2, "RescaleIntercept": 10, "WindowCenter": 100, "WindowWidth": 300}
    tags |= {"BitsStored": 12, "HighBit": 11}
    plain = dicom(tmp_path / "a.dcm", pixels, **tags)
    turned = dicom(tmp_path / "b.dcm", -1 - pixels, PhotometricInterpretation="MONOCHROME1", **tags)
    # Twelve bits with a sign run from -2048 to 2047: -1 less a value is the value opposite.
    assert (read_slice(plain) == read_slice(turned)).all()
    # 100 +- 150 opposite: the values' sum is 2 * (-1) + 2 * 10 = 18.
    assert facts_of(plain).window == (-50.0, 250.0)
    assert facts_of(turned).window == (18.0 - 250.0, 18.0 + 50.0)


@pytest.mark.parametrize("place", ["", "cat"])
def test_a_folder_that_cannot_be_read_is_named(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = classes(tmp_path / "own")
    listdir = os.listdir

    def closed(path: Any = ".") -> list[str]:
        if Path(path) == root / place:
            raise PermissionError(13, "Permission denied", str(path))
        return listdir(path)

    # Not by its mode: a superuser, as in a container, can read all.
    monkeypatch.setattr(os, "listdir", closed)
    assert call(["compare", "--data", str(root), "--out", str(tmp_path / "runs")]) == 3
    said = capsys.readouterr().err
    assert said == f"znorm: {root / place}: cannot be read (Permission denied)\n"
