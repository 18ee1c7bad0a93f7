"""Masks of several classes, tiles and millimetres of the user's own images, made here."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lab.own_folders import everything, loaded, nifti, picture, saved, spec_of
from znorm.lab import tasks
from znorm.lab.cli import run as call
from znorm.lab.errors import ConfigurationError, DataError
from znorm.lab.metrics import hausdorff
from znorm.lab.runs.folder import Run

SIZE = (40, 33)


@pytest.fixture(autouse=True)
def _data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZNORM_DATA_DIR", str(tmp_path / "decoded"))


def marks(number: int) -> Any:
    """Two things that are marked, the second brighter in every channel of its image."""
    values = np.zeros(SIZE, dtype=np.uint8)
    values[3 : 12 + number % 4, 4:20] = 1
    values[20:30, 8 : 20 + number % 5] = 2
    return values


def image(number: int) -> Any:
    noise = np.random.default_rng(number).integers(0, 60, (*SIZE, 3))
    return (noise + 80 * marks(number)[..., None]).astype(np.uint8)


def folder(root: Path, count: int = 12, values: tuple[int, int, int] = (0, 1, 2)) -> Path:
    for number in range(count):
        saved(root / "images" / f"p{number // 2}" / f"{number}.png", image(number))
        mask = np.array(values, dtype=np.uint8)[marks(number)]
        saved(root / "masks" / f"p{number // 2}" / f"{number}.png", mask)
    return root


def test_whole_numbers_without_a_gap_are_classes(tmp_path: Path) -> None:
    dataset = loaded(folder(tmp_path / "own"), size=list(SIZE))
    assert dataset.classes == ("not marked", "class 1", "class 2")
    assert dataset.outputs == 3
    for name, (_, target, _) in everything(dataset).items():
        assert (target.numpy() == marks(int(Path(name).stem))).all()
    assert dataset.test.class_counts(3) == [0, len(dataset.test), len(dataset.test)]


def test_other_values_are_named_by_the_user(tmp_path: Path) -> None:
    root = folder(tmp_path / "own", values=(0, 85, 170))
    with pytest.raises(DataError, match=r"found 0, 85, 170; if .* give data.labels=\[85, 170\]"):
        loaded(root)
    dataset = loaded(root, labels={"tumour": 170, "liver": 85}, size=list(SIZE))
    assert dataset.classes == ("not marked", "tumour", "liver")
    swapped = np.array([0, 2, 1])
    for name, (_, target, _) in everything(dataset).items():
        assert (target.numpy() == swapped[marks(int(Path(name).stem))]).all()
    with pytest.raises(DataError, match=r"expected a mask of 0 and 85, found 170"):
        loaded(root, labels=[85])


def test_palettes_are_numbers(tmp_path: Path) -> None:
    root = folder(tmp_path / "own")
    for path in (root / "masks").rglob("*.png"):
        coloured = Image.fromarray(np.asarray(Image.open(path)), mode="P")
        coloured.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0])
        coloured.save(path)
    dataset = loaded(root, size=list(SIZE))
    for name, (_, target, _) in everything(dataset).items():
        assert (target.numpy() == marks(int(Path(name).stem))).all()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"labels": [0, 1]}, "data.labels: expected the values of what masks mark"),
        ({"labels": "1"}, "data.labels: expected the values of what masks mark"),
        ({"labels": {"a": 1, "b": 1}}, "data.labels: expected the values of what masks mark"),
        ({"labels": {"a": 1.5}}, "data.labels: expected the values of what masks mark"),
        ({"overlap": 0.9}, "data.overlap: expected a share from 0 to 0.75, found 0.9"),
        ({"unit": "mm"}, "data.unit: follows from the images"),
    ],
)
def test_choices_that_are_none_are_named(
    data: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=message.replace(".", r"\.")):
        spec_of(folder(tmp_path / "own"), **data)


def test_tiles_are_for_masks(tmp_path: Path) -> None:
    for number in range(12):
        for name in ("a", "b"):
            saved(tmp_path / "own" / name / f"{number}.png", picture(number))
    with pytest.raises(ConfigurationError, match="tiles are for masks"):
        spec_of(tmp_path / "own", overlap=0.25)
    with pytest.raises(ConfigurationError, match="names what masks mark, and there are none"):
        spec_of(tmp_path / "own", labels=[1])


def test_tiles_of_pictures(tmp_path: Path) -> None:
    root = folder(tmp_path / "own")
    dataset = loaded(root, size=32, overlap=0.25)
    assert dataset.image_size == (32, 32)
    tiles = dataset.test.tiles
    assert tiles is not None
    assert set(tiles.sizes) == {SIZE}
    # 40 rows need two tiles of 32, 33 columns as well.
    assert len(dataset.test) == 4 * len(tiles.case_names)
    whole = dict(tiles.joined([dataset.test.images]))
    true = dict(tiles.joined([dataset.test.targets]))
    for number, pixels in whole.items():
        place = int(Path(tiles.names[number]).stem)
        assert (pixels.permute(1, 2, 0).numpy() == image(place)).all()
        assert (true[number].numpy() == marks(place)).all()
    few = dataset.limited(1).test
    assert few.tiles is not None
    assert len(few) == 4
    assert len(few.tiles.case_names) == 1


def test_distances_are_in_millimetres_where_files_tell(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for number in range(6):
        spacing = (0.5 + number, 0.25, 3.0)
        volume = random.integers(0, 100, (16, 12, 2)).astype(np.int16)
        nifti(tmp_path / "own" / "images" / f"{number}.nii", volume, spacing)
        marked = (random.random((16, 12, 2)) < 0.2).astype(np.uint8)
        nifti(tmp_path / "own" / "masks" / f"{number}.nii", marked, spacing)
    spec = spec_of(tmp_path / "own", size=[32, 32])
    assert spec.data.unit == "mm"
    dataset = tasks.load(spec.task, spec.data)
    assert dataset.train.spacing is not None
    for name, spacing in zip(dataset.train.names, dataset.train.spacing.tolist(), strict=True):
        number = int(Path(name).name[0])
        # 12 rows of 0.25 mm and 16 columns of 0.5 mm and more became 32 of each.
        assert spacing == pytest.approx([0.25 * 12 / 32, (0.5 + number) * 16 / 32])


def rows(path: Path) -> list[dict[str, str]]:
    with open(path / "predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


def trained(root: Path, out: Path, *settings: str) -> Run:
    words = [
        "compare",
        "--data",
        str(root),
        "--methods",
        "znorm",
        "--seeds",
        "1",
        "--out",
        str(out),
    ]
    words += ["--epochs", "1", "--device", "cpu", "--precision", "float32"]
    for setting in settings:
        words += ["--set", setting]
    assert call(words) == 0
    return Run.open(next(out.rglob("seed-0")))


@pytest.mark.slow
def test_from_masks_of_classes_in_tiles_to_predictions(tmp_path: Path) -> None:
    root = folder(tmp_path / "own")
    run = trained(root, tmp_path / "runs", "data.size=32", "data.overlap=0.25")
    cases = run.cases()
    assert cases is not None
    assert set(cases.labels or ()) == {"class 1", "class 2"}
    page = (tmp_path / "runs" / "report.html").read_text()
    assert "Masks mark class 1, class 2" in page
    assert call(["predict", str(run.folder)]) == 0
    test = run.folder / "predictions" / "test"
    scored = {(row["name"], row["label"]): row for row in rows(test)}
    for row in cases.rows():
        one = scored[row["name"], row["label"]]
        assert [int(one[key]) for key in ("tp", "fp", "fn", "tn")] == [
            row[key] for key in ("tp", "fp", "fn", "tn")
        ]
    # The same pictures from a folder, without and with their masks beside them.
    new = tmp_path / "new"
    for name in cases.case_names:
        saved(new / Path(name).name, np.asarray(Image.open(root / name)))
    assert call(["predict", str(run.folder), str(new), "--out", str(tmp_path / "found")]) == 0
    for row in rows(tmp_path / "found"):
        mask = np.asarray(Image.open(tmp_path / "found" / "masks" / f"{row['name']}.png"))
        assert mask.shape == SIZE
        number = {"class 1": 1, "class 2": 2}[row["label"]]
        assert int(row["marked"]) == (mask == number).sum()
        (name,) = (name for name in cases.case_names if Path(name).stem == row["name"])
        in_test = scored[name, row["label"]]
        assert int(row["marked"]) == int(in_test["tp"]) + int(in_test["fp"])
        saved(new / f"{row['name']}_mask.png", marks(int(row["name"])))
    assert call(["predict", str(run.folder), str(new), "--out", str(tmp_path / "again")]) == 0
    dice = [float(row["dice"]) for row in rows(tmp_path / "again")]
    assert sum(dice) / len(dice) == pytest.approx(run.metrics["test_f1_per_slice"])


@pytest.mark.slow
def test_volumes_come_out_as_volumes_in_their_own_size_and_place(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    root, new = tmp_path / "own", tmp_path / "new"
    affine = np.array([[0, -0.8, 0, 5], [0.7, 0, 0, -3], [0, 0, 2.5, 1], [0, 0, 0, 1.0]])
    for number in range(10):
        volume = np.stack([image(number)[..., 0].T, image(number + 1)[..., 0].T], 2)
        marked = np.stack([marks(number).T > 0, marks(number + 1).T > 0], 2).astype(np.uint8)
        for kind, values in (("images", volume.astype(np.int16)), ("masks", marked)):
            path = root / kind / f"{number}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(values, affine), path)
            if number < 2:
                new.mkdir(exist_ok=True)
                name = f"{number}{'_mask' if kind == 'masks' else ''}.nii.gz"
                nibabel.save(nibabel.Nifti1Image(values, affine), new / name)
    run = trained(root, tmp_path / "runs", "data.size=32")
    assert run.spec.data.unit == "mm"
    assert "Test Hausdorff, mm" in (tmp_path / "runs" / "report.html").read_text()
    assert call(["predict", str(run.folder), str(new), "--out", str(tmp_path / "found")]) == 0
    found = rows(tmp_path / "found")
    assert [row["name"] for row in found] == ["0#000", "0#001", "1#000", "1#001"]
    for number in range(2):
        made = nibabel.load(tmp_path / "found" / "masks" / f"{number}.nii.gz")
        assert np.allclose(made.affine, affine)
        there = np.asarray(made.dataobj) > 0
        assert there.shape == (33, 40, 2)
        for one in range(2):
            row = found[2 * number + one]
            assert (tmp_path / "found" / "overlays" / f"{row['name']}.png").exists()
            assert there[..., one].sum() == int(row["tp"]) + int(row["fp"])
            true = torch.from_numpy(marks(number + one) > 0)[None]
            mine = torch.from_numpy(there[..., one].T)[None]
            # The affine's second axis is a row's: 0.8 mm between rows, 0.7 between columns.
            expected = float(hausdorff(mine, true, (0.8, 0.7)))
            assert float(row["hausdorff"]) == pytest.approx(expected)
    # What was written is known for ours and replaced.
    assert call(["predict", str(run.folder), str(new), "--out", str(tmp_path / "found")]) == 0


def test_the_threshold_of_validation_is_taken_and_another_can_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = folder(tmp_path / "own", values=(0, 255, 0))
    run = trained(root, tmp_path / "runs", "data.size=32")
    new = tmp_path / "new"
    saved(new / "a#001.png", image(3))  # a picture's name, not a volume's slice
    marked = []
    for threshold in ("0.01", "0.5", "0.99"):
        words = ["predict", str(run.folder), str(new), "--threshold", threshold]
        assert call(words) == 0
        (home,) = run.folder.glob("predictions/new-*")
        marked.append(int(rows(home)[0]["marked"]))
        assert (home / "masks" / "a#001.png").exists()
    assert marked == sorted(marked, reverse=True)
    assert marked[0] > marked[2]
    for wrong in ("1", "nan", "x", "-1"):
        assert call(["predict", str(run.folder), str(new), f"--threshold={wrong}"]) == 2
        assert "threshold: expected a probability between 0 and 1" in capsys.readouterr().err
