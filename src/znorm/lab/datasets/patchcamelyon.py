"""PatchCamelyon (Veeling et al., MICCAI 2018): 327,680 patches of 96x96 pixels, tumour or not.

Read from either of two layouts below ``pcam/``: the official h5 files, whose split is used as it
is, or the one of the Kaggle edition, ``train/ID.tif`` beside ``train_labels.csv``. That one has
no test part with labels, so a fixed fifth by the hash of the id is it.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from znorm.lab.datasets.dataset import Dataset, Part
from znorm.lab.datasets.decoded import Pixels, decoded, fits_in_memory
from znorm.lab.datasets.files import data_root, read_picture, refuse_page
from znorm.lab.datasets.sources import missing
from znorm.lab.datasets.split import held_out
from znorm.lab.errors import ConfigurationError, DataError

__all__ = ["H5_IMAGES", "KAGGLE_IMAGES", "layouts_here", "load", "resolve"]

# How many images each part of the official edition has, and the Kaggle edition's training part,
# from which duplicates were taken out.
H5_IMAGES = {"train": 262_144, "valid": 32_768, "test": 32_768}
KAGGLE_IMAGES = 220_025
SIDE = 96
BLOCK = 1024


def folder() -> Path:
    return data_root() / "pcam"


def h5_file(part: str, kind: str) -> Path:
    """The official name of a file: ``kind`` is "x" for images, "y" for labels."""
    return folder() / f"camelyonpatch_level_2_split_{part}_{kind}.h5"


def layouts_here() -> list[str]:
    """Of "h5" and "kaggle" those of which something is there, the preferred one first."""
    found = []
    if all(h5_file(part, kind).exists() for part in H5_IMAGES for kind in "xy"):
        found.append("h5")
    if (folder() / "train_labels.csv").exists():
        found.append("kaggle")
    return found


def resolve(given: Mapping[str, Any]) -> dict[str, Any]:
    """Which layout is read, and how much of a Kaggle edition is for validation.

    Raises
    ------
    ConfigurationError, DataError
    """
    here = layouts_here()
    layout = given.get("layout")
    files = [h5_file(part, kind) for part in H5_IMAGES for kind in "xy"]
    absent = [path.name for path in files if not path.exists()]
    if not here and len(absent) < len(files):
        raise DataError(f"{folder()}: of the official h5 files these are not here: {absent}")
    if layout is None:
        if not here:
            raise missing("patchcamelyon")
        layout = here[0]
    if layout not in ("h5", "kaggle"):
        raise ConfigurationError(f"data.layout: expected h5 or kaggle, found {layout!r}")
    if layout not in here:
        raise missing("patchcamelyon")
    validation = given.get("validation")
    if layout == "h5":
        if validation is not None:
            raise ConfigurationError(
                "data.validation: the official edition has a validation part of its own"
            )
        return {"layout": layout, "validation": None}
    return {"layout": layout, "validation": 0.15 if validation is None else validation}


def load(layout: str, validation: float | None) -> Dataset:
    """The three parts.

    Raises
    ------
    DataError
        Naming the file, what was expected and what was found.
    """
    classes = ("no tumour", "tumour")
    if layout == "h5":
        train, valid, test = (_read_h5(part) for part in ("train", "valid", "test"))
        counts = {"train": len(train), "valid": len(valid), "test": len(test)}
        notes: tuple[str, ...] = ()
        if counts != H5_IMAGES:
            said = ", ".join(f"{part} {n:,} of {H5_IMAGES[part]:,}" for part, n in counts.items())
            notes = (f"Part of PatchCamelyon: {said} images.",)
        return Dataset(train, valid, test, classes, notes)
    return _read_kaggle(classes, 0.0 if validation is None else validation)


def _read_h5(part: str) -> Part:
    try:
        import h5py
    except ImportError:
        raise ConfigurationError(
            "the official PatchCamelyon files need h5py; pip install 'znorm[lab]'"
        ) from None
    paths = h5_file(part, "x"), h5_file(part, "y")
    with ExitStack() as stack:
        arrays = []
        for path, key in zip(paths, "xy", strict=True):
            if not path.exists():
                raise DataError(f"{path}: missing; {missing('patchcamelyon')}")
            with open(path, "rb") as file:
                refuse_page(path, file.read(512))
            try:
                array = stack.enter_context(h5py.File(path, "r"))[key]
                array.shape[0]
                # Labels are small and read at once: a damaged chunk shows here.
                arrays.append(array if key == "x" else array[:])
            except (OSError, KeyError, AttributeError, IndexError) as error:
                reason = " ".join(str(error).split())
                raise DataError(
                    f"{path}: expected an h5 file with the array {key!r}, found none ({reason}); "
                    "it is cut off or not that file"
                ) from None
        images, labels = arrays
        shape = (len(labels), SIDE, SIDE, 3)
        if images.shape != shape or images.dtype != np.uint8:
            raise DataError(
                f"{paths[0]}: expected images {shape} uint8 for the {len(labels)} labels, found "
                f"{images.shape} {images.dtype}"
            )
        found = labels.reshape(len(labels), -1)
        if found.shape[1:] != (1,) or not np.isin(found, (0, 1)).all():
            raise DataError(f"{paths[1]}: expected one label of 0 or 1 an image, found other")

        def fill(pixels: Pixels) -> None:
            for start in range(0, len(pixels), BLOCK):
                try:
                    pixels[start : start + BLOCK] = images[start : start + BLOCK]
                except OSError as error:
                    reason = " ".join(str(error).split())
                    raise DataError(
                        f"{paths[0]}: images from {start} on cannot be read ({reason})"
                    ) from None

        pixels = decoded(f"pcam-{part}", [paths[0]], shape, fill)
    return Part(
        pixels.permute(0, 3, 1, 2),
        torch.from_numpy(found[:, 0].astype(np.int64)),
        tuple(f"{part}/{row}" for row in range(len(found))),
        mapped=not fits_in_memory(shape),
    )


def _labels() -> dict[str, int]:
    path = folder() / "train_labels.csv"
    labels: dict[str, int] = {}
    try:
        with open(path, newline="") as file:
            start = file.readline()
            refuse_page(path, start.encode())
            if [name.strip() for name in start.split(",")] != ["id", "label"]:
                raise DataError(f"{path}: expected the columns id,label, found {start.strip()!r}")
            for number, row in enumerate(csv.reader(file), start=2):
                if not row:
                    continue
                if len(row) != 2 or row[1] not in ("0", "1"):
                    raise DataError(
                        f"{path}: line {number}: expected an id and a label of 0 or 1, "
                        f"found {','.join(row)!r}"
                    )
                if row[0] in labels:
                    raise DataError(f"{path}: line {number}: the id {row[0]} is there twice")
                labels[row[0]] = int(row[1])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    return labels


def _read_kaggle(classes: tuple[str, ...], validation: float) -> Dataset:
    labels = _labels()
    ids = sorted(labels)
    encoded = [name.encode() for name in ids]
    classed = [labels[name] for name in ids]
    for_test = held_out(encoded, classed, 0.2)
    rest = np.flatnonzero(~for_test)
    aside = held_out([encoded[i] for i in rest], [classed[i] for i in rest], validation)
    # Part by part in the decoded file, so that each part of a mapped set is a slice of it.
    members = [rest[~aside], rest[aside], np.flatnonzero(for_test)]
    order = [ids[i] for i in np.concatenate(members)]
    files = [folder() / "train" / f"{name}.tif" for name in order]
    for file in files:
        if not file.exists():
            raise DataError(
                f"{file}: missing; train_labels.csv lists it. Unpack the set again, or take its "
                "line out of the list"
            )

    def fill(pixels: Pixels) -> None:
        for row, file in enumerate(files):
            pixels[row] = read_picture(file, "RGB", (SIDE, SIDE))

    shape = (len(ids), SIDE, SIDE, 3)
    images = decoded("pcam-kaggle", files, shape, fill).permute(0, 3, 1, 2)
    targets = torch.tensor([labels[name] for name in order], dtype=torch.int64)
    starts = np.cumsum([0, *map(len, members)]).tolist()
    train, valid, test = (
        Part(
            images[start:stop],
            targets[start:stop],
            tuple(order[start:stop]),
            mapped=not fits_in_memory(shape),
        )
        for start, stop in pairwise(starts)
    )
    notes = [
        "Kaggle edition: it has no test part with labels; a fixed fifth by the hash of the id is "
        "it. Patches carry no slide id, so that training and test patches may share a slide: "
        "scores are optimistic."
    ]
    if len(ids) != KAGGLE_IMAGES:
        notes.insert(0, f"Part of PatchCamelyon: {len(ids):,} of {KAGGLE_IMAGES:,} images.")
    return Dataset(train, valid, test, classes, tuple(notes))
