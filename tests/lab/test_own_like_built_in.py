"""The images of built-in tasks as a stranger's folders: every form gives the built-in's scores.

Always from the built-in data; from PatchCamelyon and LGG where $ZNORM_DATA_DIR has files of them.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lab.own_folders import dicom, nifti, saved, table
from znorm import lab
from znorm.lab import data, tasks
from znorm.lab.datasets import Dataset, Split
from znorm.lab.runs.folder import Run
from znorm.lab.spec import resolve
from znorm.lab.tasks import TASKS

pytestmark = pytest.mark.slow

# Images of each part; those of LGG are sixteen times as large.
LIMITS = {"lgg_mri": 6}
PLAIN: dict[str, Any] = {
    "methods": ["znorm"],
    "seeds": 1,
    "epochs": 1,
    "device": "cpu",
    "precision": "float32",
    "batch_size": 6,
    "lr": 1e-3,
}


def there(task: str) -> None:
    """Skip where the files of a task are not here."""
    if TASKS[task].data.origin is None:
        return
    states = {row["name"]: row["state"] for row in data.listing()}
    if "ZNORM_DATA_DIR" not in os.environ or states[task] not in ("whole", "part"):
        pytest.skip(f"no files of {task} in $ZNORM_DATA_DIR")


def few(task: str) -> Dataset:
    return tasks.load(task, resolve({"task": task, "data": {"limit": limit_of(task)}}).data)


def limit_of(task: str) -> int:
    return LIMITS.get(task, 12)


def parts(dataset: Dataset) -> list[tuple[str, Split]]:
    named = (("train", dataset.train), ("validation", dataset.validation), ("test", dataset.test))
    return [(name, split) for name, split in named]


def pixels(split: Split, row: int) -> Any:
    image = split.images[row].permute(1, 2, 0).numpy()
    return image[..., 0] if image.shape[2] == 1 else image


def as_array(path: Path, image: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, image)
    return path


def as_dicom(path: Path, image: Any) -> Path:
    tags = {"RescaleSlope": 1, "RescaleIntercept": 0, "WindowCenter": 127.5, "WindowWidth": 255}
    return dicom(path, image, **tags)


WRITERS: dict[str, Callable[[Path, Any], Path]] = {
    "png": saved,
    "tif": saved,
    "bmp": saved,
    "npy": as_array,
    "dcm": as_dicom,
}


def written(dataset: Dataset, root: Path, ending: str, *, grey: bool) -> Path:
    """Every image as a file, in order, and the table of them."""
    rows, number = [], 0
    for part, split in parts(dataset):
        for row in range(len(split)):
            image = pixels(split, row)
            if grey and image.ndim == 3:
                image = image[..., 1]
            name = f"{number:04}.{ending}"
            WRITERS[ending](root / "files" / name, image)
            line = {"file": f"files/{name}", "part": part}
            if split.patients:
                line["patient"] = split.patients[row]
            if split.has_masks:
                saved(root / "true" / f"{number:04}.png", split.targets[row].numpy() * 255)
                line["mask"] = f"true/{number:04}.png"
            else:
                line["label"] = dataset.classes[int(split.targets[row])]
            rows.append(line)
            number += 1
    return table(root, rows)


def scores(run: Run) -> dict[str, float]:
    return {name: value for name, value in run.metrics.items() if name != "seconds"}


def predictions(folder: Path) -> list[list[str]]:
    """The rows of predictions.csv, without names and patients."""
    with open(folder / "predictions.csv", newline="") as file:
        return [
            [value for key, value in row.items() if key not in ("name", "patient")]
            for row in csv.DictReader(file)
        ]


def trained(out: Path, **options: Any) -> Run:
    (run,) = lab.compare(**{**PLAIN, **options, "out": out})
    assert run.status == "done"
    return run


@pytest.mark.parametrize(
    ("task", "ending"),
    [
        *((task, ending) for task in ("pcam_mini", "phantom") for ending in ("bmp", "npy", "png")),
        ("patchcamelyon", "tif"),
        ("lgg_mri", "tif"),
    ],
)
def test_a_table_of_files_has_the_scores_of_the_built_in_task(
    task: str, ending: str, tmp_path: Path
) -> None:
    there(task)
    dataset, spec = few(task), resolve({"task": task})
    listed = written(dataset, tmp_path / "own", ending, grey=False)
    theirs = trained(tmp_path / "built in", task=task, model=spec.model, limit=limit_of(task))
    choices = {"loss": spec.loss, "data.augment": spec.data.augment}
    choices |= {"data.size": list(dataset.image_size)}
    mine = trained(
        tmp_path / "runs", data=tmp_path / "own", table=listed, model=spec.model, set=choices
    )
    # The same images in the same order: the same weights, to the bit.
    hashes = [(run.result or {})["hashes"] for run in (mine, theirs)]
    assert hashes[0]["data"] == hashes[1]["data"] == dataset.fingerprint
    assert hashes[0]["final_weights"] == hashes[1]["final_weights"]
    assert scores(mine) == scores(theirs)
    assert predictions(lab.predict(mine)) == predictions(lab.predict(theirs))
    # As files without any truth beside them, at the report's threshold.
    new = tmp_path / "new"
    for row in range(len(dataset.test)):
        WRITERS[ending](new / f"{row:04}.{ending}", pixels(dataset.test, row))
    found = lab.predict(mine, new, out=tmp_path / "found", threshold=0.5)
    if dataset.test.has_masks:
        of_test = lab.predict(mine) / "masks"
        by_name = [np.asarray(Image.open(path)) for path in sorted((found / "masks").iterdir())]
        # Test names are those of the files: sorted, as these are.
        expected = [np.asarray(Image.open(path)) for path in sorted(of_test.rglob("*.png"))]
        assert all((one == other).all() for one, other in zip(by_name, expected, strict=True))
    else:
        shares = [row[1:] for row in predictions(lab.predict(mine))]  # without the truth
        assert predictions(found) == shares


@pytest.mark.parametrize("task", ["pcam_mini", "patchcamelyon"])
def test_folders_of_parts_and_classes_have_the_scores_of_a_table(task: str, tmp_path: Path) -> None:
    there(task)
    dataset, root, rows = few(task), tmp_path / "own", []
    for part, split in parts(dataset):
        for row in range(len(split)):
            label = dataset.classes[int(split.targets[row])]
            name = f"{part}/{label}/{row:04}.png"
            saved(root / name, pixels(split, row))
            rows.append({"file": name, "label": label, "part": part})
    by_folder = trained(tmp_path / "a", data=root)
    by_table = trained(tmp_path / "b", data=root, table=table(tmp_path, rows))
    assert scores(by_folder) == scores(by_table)
    assert predictions(lab.predict(by_folder)) == predictions(lab.predict(by_table))


@pytest.mark.parametrize("task", ["pcam_mini", "phantom", "patchcamelyon", "lgg_mri"])
def test_dicom_files_have_the_scores_of_the_same_pictures_in_grey(
    task: str, tmp_path: Path
) -> None:
    there(task)
    dataset = few(task)
    choices = {"data.size": list(dataset.image_size)}
    runs = []
    for ending in ("png", "dcm"):
        listed = written(dataset, tmp_path / ending, ending, grey=True)
        out = tmp_path / f"runs {ending}"
        runs.append(trained(out, data=tmp_path / ending, table=listed, set=choices))
    assert runs[1].spec.data.window == (0.0, 255.0)
    assert [run.spec.data.channels for run in runs] == [1, 1]
    known, mm = (scores(run) for run in runs)
    distances = {name for name in known if "hausdorff" in name and "rows" not in name}
    assert {k: v for k, v in known.items() if k not in distances} == {
        k: v for k, v in mm.items() if k not in distances
    }
    # 0.5 mm from row to row, 0.7 from column to column: at least half the pixels.
    assert all(0.5 * known[name] <= mm[name] <= 0.7 * known[name] + 1e-9 for name in distances)


@pytest.mark.parametrize("task", ["phantom", "lgg_mri"])
def test_volumes_have_the_scores_of_their_slices(task: str, tmp_path: Path) -> None:
    there(task)
    dataset = few(task)
    root = {kind: tmp_path / kind for kind in ("slices", "volumes")}
    images: dict[str, list[Any]] = {}
    marks: dict[str, list[Any]] = {}
    for _, split in parts(dataset):
        for row, patient in enumerate(split.patients):
            image = pixels(split, row)
            images.setdefault(patient, []).append(image if image.ndim == 2 else image[..., 1])
            marks.setdefault(patient, []).append(split.targets[row].numpy())
    for patient in images:
        for kind, slices, scale in (("images", images, 1), ("masks", marks, 255)):
            for number, one in enumerate(slices[patient]):
                place = root["slices"] / kind / f"{patient}.nii.gz" / f"{number:03}.png"
                saved(place, (one * scale).astype(np.uint8))
            volume = np.stack([one.T for one in slices[patient]], 2)
            nifti(root["volumes"] / kind / f"{patient}.nii.gz", volume, (1.0, 1.0, 5.0))
    choices = {"data.size": list(dataset.image_size), "data.window": [0, 255]}
    runs = [
        trained(tmp_path / f"runs {kind}", data=root[kind], set=choices)
        for kind in ("slices", "volumes")
    ]
    assert [run.spec.data.unit for run in runs] == [None, "mm"]
    # A pixel is a millimetre: the distances are the same, too.
    assert scores(runs[0]) == scores(runs[1])
    home = lab.predict(runs[1], root["volumes"] / "images", out=tmp_path / "found")
    nibabel = pytest.importorskip("nibabel")
    for patient in images:
        made = nibabel.load(home / "masks" / f"{patient}.nii.gz")
        there_ = nibabel.load(root["volumes"] / "images" / f"{patient}.nii.gz")
        assert made.shape == there_.shape
        assert (made.affine == there_.affine).all()
