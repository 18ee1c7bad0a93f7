"""LGG brain MRI segmentation (Buda, Saha and Mazurowski 2019), in the layout of its Kaggle edition.

``lgg/kaggle_3m/PATIENT/PATIENT_K.tif`` (256x256, the channels before contrast, FLAIR, after
contrast) beside ``..._K_mask.tif`` (0 and 255). Slices without tumour are kept. The split is by
patient: slices of one patient are alike, so that a split by slice leaks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from znorm.lab.datasets import split as splitting
from znorm.lab.datasets.dataset import Dataset, Part
from znorm.lab.datasets.decoded import Pixels, decoded, fits_in_memory
from znorm.lab.datasets.files import data_root, read_picture
from znorm.lab.datasets.sources import missing
from znorm.lab.errors import ConfigurationError, DataError

__all__ = ["PATIENTS", "SLICES", "load", "resolve", "slices_here"]

PATIENTS = 110
SLICES = 3929
SIDE = 256


def folder() -> Path:
    return data_root() / "lgg" / "kaggle_3m"


def slices_here() -> dict[str, list[Path]]:
    """The slices of each patient, by number.

    Raises
    ------
    DataError
        If a slice has no mask, or a mask no slice.
    """
    found: dict[str, list[Path]] = {}
    for home in sorted(folder().glob("TCGA_*")) if folder().is_dir() else []:
        masks = {path.name for path in home.glob("*_mask.tif")}
        numbered = {}
        for path in home.glob("*.tif"):
            if path.name in masks:
                continue
            match = re.fullmatch(rf"{re.escape(home.name)}_(\d+)\.tif", path.name)
            if match is None:
                raise DataError(f"{path}: expected {home.name}_NUMBER.tif, found another name")
            numbered[int(match[1])] = path
        for path in numbered.values():
            if _mask(path).name not in masks:
                raise DataError(f"{path}: has no mask; expected {_mask(path).name} beside it")
        for name in masks - {_mask(path).name for path in numbered.values()}:
            raise DataError(f"{home / name}: has no image beside it")
        if numbered:
            found[home.name] = [numbered[number] for number in sorted(numbered)]
    return found


def _mask(image: Path) -> Path:
    return image.with_name(f"{image.stem}_mask.tif")


def resolve(given: Mapping[str, Any]) -> dict[str, Any]:
    """Which patients are for what: by default stratified by tumour load, else from a file.

    Raises
    ------
    ConfigurationError, DataError
    """
    here = slices_here()
    if not here:
        raise missing("lgg_mri")
    asked = given.get("split")
    if isinstance(asked, str):
        return {"split": splitting.read(Path(asked))}
    if asked is not None:
        return {"split": splitting.checked(asked, "data.split")}
    return {"split": splitting.by_patient(_loads(here))}


def _loads(here: Mapping[str, list[Path]]) -> dict[str, float]:
    """The share of pixels that are tumour, by patient."""
    _, masks = _pixels(here)
    loads: dict[str, float] = {}
    start = 0
    for patient, files in here.items():
        part = masks[start : start + len(files)]
        loads[patient] = float(part.sum(dtype=torch.int64)) / part.numel()
        start += len(files)
    return loads


def _pixels(here: Mapping[str, list[Path]]) -> tuple[Tensor, Tensor]:
    """All images and masks that are there, in order."""
    files = [path for paths in here.values() for path in paths]
    stamps = tuple((str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in _all(files))
    whole = _decoded(tuple(files), stamps)
    return whole[..., :3].permute(0, 3, 1, 2), whole[..., 3]


def _all(files: Iterable[Path]) -> Iterable[Path]:
    for path in files:
        yield from (path, _mask(path))


# One entry: the set is read once a process, however many runs of a grid ask for it.
@lru_cache(maxsize=1)
def _decoded(files: tuple[Path, ...], stamps: tuple[Any, ...]) -> Tensor:
    def fill(pixels: Pixels) -> None:
        for row, path in enumerate(files):
            pixels[row, :, :, :3] = read_picture(path, "RGB", (SIDE, SIDE))
            mask = read_picture(_mask(path), "L", (SIDE, SIDE))
            values = np.unique(mask)
            if not np.isin(values, (0, 255)).all():
                raise DataError(
                    f"{_mask(path)}: expected a mask of 0 and 255, found {values.tolist()[:5]}"
                )
            pixels[row, :, :, 3] = mask > 0

    return decoded("lgg", _all(files), (len(files), SIDE, SIDE, 4), fill)


def load(split: Mapping[str, list[str]]) -> Dataset:
    """The three parts, each in the order of its patients and of their slices.

    Raises
    ------
    DataError
        Naming the file or patient, what was expected and what was found.
    """
    here = slices_here()
    if not here:
        raise missing("lgg_mri")
    chosen = splitting.checked(split, "data.split")
    for name, patients in chosen.items():
        for patient in patients:
            if patient not in here:
                raise DataError(
                    f"{folder()}: patient {patient} of the split's {name} part is not there"
                )
    if not chosen["train"] or not chosen["test"]:
        raise ConfigurationError("data.split: the train and test parts need a patient each")
    images, masks = _pixels(here)
    owners = [patient for patient, files in here.items() for _ in files]
    names = [path.stem for files in here.values() for path in files]
    mapped = not fits_in_memory((len(owners), SIDE, SIDE, 4))

    def part(patients: list[str]) -> Part:
        rows = [row for row, owner in enumerate(owners) if owner in set(patients)]
        index = torch.tensor(rows, dtype=torch.int64)
        return Part(
            images[index],
            masks[index],
            tuple(names[row] for row in rows),
            tuple(owners[row] for row in rows),
            mapped,
        )

    counts = {name: len(patients) for name, patients in chosen.items()}
    notes = [
        f"Split by patient: {counts['train']} for training, {counts['validation']} for validation, "
        f"{counts['test']} for test, stratified by tumour load by default; slices without tumour "
        "are kept."
    ]
    left = len(here) - sum(counts.values())
    if left:
        notes.append(f"{left} patients are in no part of the split.")
    if len(here) != PATIENTS or len(owners) != SLICES:
        notes.insert(
            0,
            f"Part of the LGG set: {len(here)} of {PATIENTS} patients, {len(owners):,} of "
            f"{SLICES:,} slices.",
        )
    return Dataset(
        part(chosen["train"]),
        part(chosen["validation"]),
        part(chosen["test"]),
        ("no tumour", "tumour"),
        tuple(notes),
    )
