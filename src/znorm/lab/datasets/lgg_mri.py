"""LGG brain MRI segmentation (Buda, Saha and Mazurowski 2019), in the layout of its Kaggle edition.

``lgg/kaggle_3m/PATIENT/PATIENT_K.tif`` (256x256, the channels before contrast, FLAIR, after
contrast) beside ``..._K_mask.tif`` (0 and 255); ``.TIF`` and ``.tiff`` are read too. Slices
without tumour are kept. The split is by patient: slices of one patient are alike, so that a split
by slice leaks.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from znorm.lab.datasets import split as splitting
from znorm.lab.datasets.dataset import Dataset, Split
from znorm.lab.datasets.decoded import Pixels, decoded, fits_in_memory
from znorm.lab.datasets.files import data_root, listing, read_mask, read_picture, stat_file
from znorm.lab.datasets.source import DataSource, Origin, State
from znorm.lab.datasets.task import Task
from znorm.lab.errors import ConfigurationError, DataError

__all__ = ["PATIENTS", "SLICES", "SOURCE", "TASK", "Slice", "load", "resolve", "slices_here"]

PATIENTS = 110
SLICES = 3929
SIDE = 256
ENDINGS = (".tif", ".tiff")


class Slice(NamedTuple):
    """One slice, and the mask beside it."""

    image: Path
    mask: Path


def folder() -> Path:
    return data_root() / "lgg" / "kaggle_3m"


def slices_here() -> dict[str, list[Slice]]:
    """The slices of each patient, by number.

    Raises
    ------
    DataError
        If a slice has no mask, or a mask no slice, or two have one number.
    """
    here: dict[str, list[Slice]] = {}
    for name in listing(folder()) if folder().is_dir() else []:
        home = folder() / name
        if not name.startswith("TCGA_"):
            continue
        if not os.path.isdir(home):
            stat_file(home)  # a file is none of the set's; a link to nothing is a patient's
            continue
        if slices := _slices_of(home):
            here[name] = slices
    return here


def _slices_of(home: Path) -> list[Slice]:
    """The slices in the folder of a patient, by number."""
    images: dict[int, Path] = {}
    masks: dict[int, Path] = {}
    pattern = re.compile(rf"{re.escape(home.name)}_(\d+)(_mask)?")
    for path in (home / name for name in listing(home)):
        if path.suffix.lower() not in ENDINGS:
            continue
        match = pattern.fullmatch(path.stem)
        if match is None:
            raise DataError(f"{path}: expected {home.name}_NUMBER.tif, found another name")
        numbered = masks if match[2] else images
        other = numbered.setdefault(int(match[1]), path)
        if other != path:
            raise DataError(f"{path}: {other.name} beside it has the same number")
    for number, path in images.items():
        if number not in masks:
            raise DataError(f"{path}: has no mask; expected {path.stem}_mask.tif beside it")
    for number, path in masks.items():
        if number not in images:
            raise DataError(f"{path}: has no image beside it")
    return [Slice(images[number], masks[number]) for number in sorted(images)]


def resolve(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The patients of each split: by default stratified by tumour load, else from a file.

    Raises
    ------
    ConfigurationError, DataError
    """
    here = slices_here()
    if not here:
        raise SOURCE.missing()
    asked = chosen.get("split")
    if isinstance(asked, str):
        return {"split": splitting.read(Path(asked))}
    if asked is not None:
        return {"split": splitting.checked(asked, "data.split")}
    return {"split": splitting.by_patient(_loads(here))}


def _loads(here: Mapping[str, list[Slice]]) -> dict[str, float]:
    """The share of pixels that are tumour, by patient."""
    _, masks = _pixels(here)
    loads: dict[str, float] = {}
    start = 0
    for patient, files in here.items():
        of_patient = masks[start : start + len(files)]
        loads[patient] = float(of_patient.sum(dtype=torch.int64)) / of_patient.numel()
        start += len(files)
    return loads


def _pixels(here: Mapping[str, list[Slice]]) -> tuple[Tensor, Tensor]:
    """All images and masks that are there, in order."""
    slices = tuple(one for several in here.values() for one in several)
    stamps = tuple((entry.st_mtime_ns, entry.st_size) for entry in map(stat_file, _files(slices)))
    whole = _decoded(slices, stamps)
    return whole[..., :3].permute(0, 3, 1, 2), whole[..., 3]


def _files(slices: Iterable[Slice]) -> Iterable[Path]:
    return (path for one in slices for path in one)


# One entry: the set is read once a process, however many runs of a grid ask for it.
@lru_cache(maxsize=1)
def _decoded(slices: tuple[Slice, ...], stamps: tuple[Any, ...]) -> Tensor:
    def fill(pixels: Pixels) -> None:
        for row, (image, mask) in enumerate(slices):
            pixels[row, :, :, :3] = read_picture(image, "RGB", (SIDE, SIDE))
            pixels[row, :, :, 3] = read_mask(mask, (SIDE, SIDE))

    return decoded("lgg", _files(slices), (len(slices), SIDE, SIDE, 4), fill)


def load(split: Mapping[str, list[str]]) -> Dataset:
    """The three splits, each in the order of its patients and of their slices.

    Raises
    ------
    DataError
        Naming the file or patient, what was expected and what was found.
    """
    here = slices_here()
    if not here:
        raise SOURCE.missing()
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
    owners = [patient for patient, slices in here.items() for _ in slices]
    names = [one.image.stem for slices in here.values() for one in slices]
    mapped = not fits_in_memory((len(owners), SIDE, SIDE, 4))

    def split_of(patients: list[str]) -> Split:
        rows = [row for row, owner in enumerate(owners) if owner in set(patients)]
        index = torch.tensor(rows, dtype=torch.int64)
        return Split(
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
        split_of(chosen["train"]),
        split_of(chosen["validation"]),
        split_of(chosen["test"]),
        ("no tumour", "tumour"),
        tuple(notes),
    )


def state() -> State:
    here = slices_here()
    if not here:
        return State("missing")
    slices = sum(map(len, here.values()))
    whole = len(here) == PATIENTS and slices == SLICES
    return State(
        "whole" if whole else "part",
        f"{len(here)} of {PATIENTS} patients, {slices:,} of {SLICES:,} slices",
    )


SOURCE = DataSource(
    name="lgg_mri",
    about="3,929 brain MRI slices of 256x256 pixels of 110 patients, with tumour masks",
    load=lambda data: load({name: list(patients) for name, patients in (data.split or {}).items()}),
    keys=("split",),
    resolve=resolve,
    state=state,
    forget=_decoded.cache_clear,
    origin=Origin(
        licence="the terms of TCIA and Kaggle; cite Buda, Saha and Mazurowski 2019",
        home="https://www.kaggle.com/datasets/mateuszbuda/lgg-mri-segmentation",
        folder="lgg",
        by_hand=(
            "log in at {home}, download the archive, and put its folder kaggle_3m (with the "
            "folders TCGA_*) into {folder}/"
        ),
    ),
)

TASK = Task(
    data=SOURCE,
    label="LGG brain MRI",
    about="3,929 brain MRI slices of 256x256 pixels with tumour masks (paper, Table 3)",
    output="mask",
    model="resnet50_unet",
    loss="tversky",
    epochs=50,
    batch_size=128,
    learning_rate=1e-2,
    schedule="multistep:30,35,40,45",
)
