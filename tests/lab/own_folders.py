"""Folders as users have them, made here, and what is read of them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from znorm.lab import tasks
from znorm.lab.datasets import Dataset
from znorm.lab.datasets.own.tasks import task_of
from znorm.lab.spec import RunSpec, resolve


def picture(number: int, size: tuple[int, ...] = (16, 12, 3)) -> Any:
    return np.random.default_rng(number).integers(0, 256, size).astype(np.uint8)


def saved(path: Path, pixels: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def classes(root: Path, *, count: int = 12, patients: int = 0) -> Path:
    for number in range(count):
        for name in ("cat", "dog"):
            home = root / name / (f"p{number % patients}" if patients else "")
            saved(home / f"{name}-{number}.png", picture(number + 100 * (name == "dog")))
    return root


def with_masks(root: Path, count: int = 12) -> Path:
    for number in range(count):
        saved(root / "images" / f"{number}.png", picture(number))
        marked = np.zeros((16, 12), dtype=np.uint8)
        marked[:5, : number % 4] = 255
        saved(root / "masks" / f"{number}_mask.png", marked)
    return root


def table(root: Path, rows: list[dict[str, str]]) -> Path:
    path = root / "list.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def spec_of(folder: Path, listed: Path | None = None, **data: Any) -> RunSpec:
    of_folder = {"folder": str(folder), "table": None if listed is None else str(listed), **data}
    task = task_of(str(folder), of_folder["table"])
    return resolve({"task": task, "device": "cpu", "data": of_folder})


def loaded(folder: Path, listed: Path | None = None, **data: Any) -> Dataset:
    spec = spec_of(folder, listed, **data)
    return tasks.load(spec.task, spec.data)


def everything(dataset: Dataset) -> dict[str, tuple[Any, Any, str]]:
    """By name the pixels, the target and the part."""
    return {
        name: (split.images[row], split.targets[row], part)
        for part, split in (
            ("train", dataset.train),
            ("validation", dataset.validation),
            ("test", dataset.test),
        )
        for row, name in enumerate(split.names)
    }


def nifti(path: Path, volume: Any, spacing: tuple[float, ...] = (0.5, 0.7, 3.0)) -> Path:
    nibabel = pytest.importorskip("nibabel")
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([*spacing, 1.0])), path)
    return path


def dicom(path: Path, pixels: Any, **tags: Any) -> Path:
    pydicom = pytest.importorskip("pydicom")
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    one = pydicom.dataset.FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    one.SOPClassUID, one.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta[0x0002, 0x0003].value
    one.Rows, one.Columns = pixels.shape
    one.BitsAllocated = one.BitsStored = 16
    one.HighBit, one.PixelRepresentation, one.SamplesPerPixel = 15, 1, 1
    one.PhotometricInterpretation = "MONOCHROME2"
    one.PixelSpacing, one.ImagePositionPatient = [0.5, 0.7], [0, 0, 0]
    one.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    for name, value in {"RescaleSlope": 2, "RescaleIntercept": -1000, **tags}.items():
        setattr(one, name, value)
    one.PixelData = pixels.astype(np.int16).tobytes()
    one.save_as(path, enforce_file_format=True)
    return path
