"""PatchCamelyon (Veeling et al., MICCAI 2018): 327,680 patches of 96x96 pixels, tumour or not.

Read from either of two layouts below ``pcam/``: the official h5 files, whose split is used as it
is, or the one of the Kaggle edition, ``train/ID.tif`` (or ``.TIF``, ``.tiff``) beside
``train_labels.csv``. That one has no test part with labels, so a fixed fifth by the hash of the id
is it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from znorm.lab.datasets.dataset import Dataset, Split
from znorm.lab.datasets.decoded import Pixels, decoded, fits_in_memory
from znorm.lab.datasets.files import (
    data_root,
    inside,
    listing,
    read_bytes,
    read_picture,
    read_start,
    refuse_page,
    stat_file,
)
from znorm.lab.datasets.source import DataSource, Download, Origin, State
from znorm.lab.datasets.split import held_out
from znorm.lab.datasets.task import Task
from znorm.lab.errors import ConfigurationError, DataError

__all__ = [
    "H5_IMAGES",
    "KAGGLE_IMAGES",
    "SOURCE",
    "TASK",
    "layouts_here",
    "load",
    "patches_here",
    "resolve",
]

# How many images each part of the official edition has, and the Kaggle edition's training part,
# from which duplicates were taken out.
H5_IMAGES = {"train": 262_144, "valid": 32_768, "test": 32_768}
KAGGLE_IMAGES = 220_025
SIDE = 96
BLOCK = 1024
ENDINGS = (".tif", ".tiff")


class Patch(NamedTuple):
    """A patch of the Kaggle edition."""

    file: Path
    label: int


def folder() -> Path:
    return data_root() / "pcam"


def h5_file(part: str, kind: str) -> Path:
    """The official name of a file: ``kind`` is "x" for images, "y" for labels."""
    return folder() / f"camelyonpatch_level_2_split_{part}_{kind}.h5"


def layouts_here() -> list[str]:
    """The editions, "h5" or "kaggle", of which something is there, the preferred one first."""
    layouts = []
    if all(h5_file(part, kind).exists() for part in H5_IMAGES for kind in "xy"):
        layouts.append("h5")
    if (folder() / "train_labels.csv").exists():
        layouts.append("kaggle")
    return layouts


def resolve(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The layout that is read, and how much of a Kaggle edition is for validation.

    Raises
    ------
    ConfigurationError, DataError
    """
    here = layouts_here()
    layout = chosen.get("layout")
    files = [h5_file(part, kind) for part in H5_IMAGES for kind in "xy"]
    absent = [path.name for path in files if not path.exists()]
    if not here and len(absent) < len(files):
        raise DataError(f"{folder()}: of the official h5 files these are not here: {absent}")
    if layout is None:
        if not here:
            raise SOURCE.missing()
        layout = here[0]
    if layout not in ("h5", "kaggle"):
        raise ConfigurationError(f"data.layout: expected h5 or kaggle, found {layout!r}")
    if layout not in here:
        raise SOURCE.missing()
    validation = chosen.get("validation")
    if layout == "h5":
        if validation is not None:
            raise ConfigurationError(
                "data.validation: the official edition has a validation part of its own"
            )
        return {"layout": layout, "validation": None}
    return {"layout": layout, "validation": 0.15 if validation is None else validation}


def load(layout: str, validation: float | None) -> Dataset:
    """The three splits.

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


def _read_h5(part: str) -> Split:
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
                raise DataError(f"{path}: missing; {SOURCE.missing()}")
            refuse_page(path, read_start(path))
            try:
                file = stack.enter_context(h5py.File(path, "r"))
                # An h5 file can say that what it holds lies in other files, anywhere.
                in_file = file.id.links.get_info(key.encode()).type == h5py.h5l.TYPE_HARD
                if not in_file or file[key].external or file[key].is_virtual:
                    raise DataError(
                        f"{path}: expected the array {key!r} in it, found a link to elsewhere; "
                        "download it again"
                    )
                array = file[key]
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
        labels = labels.reshape(len(labels), -1)
        if labels.shape[1:] != (1,) or not np.isin(labels, (0, 1)).all():
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
    return Split(
        pixels.permute(0, 3, 1, 2),
        torch.from_numpy(labels[:, 0].astype(np.int64)),
        tuple(f"{part}/{row}" for row in range(len(labels))),
        mapped=not fits_in_memory(shape),
    )


def patches_here() -> dict[str, str]:
    """The name of the file in ``train`` for each id of the Kaggle edition."""
    here: dict[str, str] = {}
    train = folder() / "train"
    for name in listing(train) if train.is_dir() else []:
        stem, dot, ending = name.rpartition(".")
        if f"{dot}{ending}".lower() in ENDINGS and here.setdefault(stem, name) != name:
            raise DataError(f"{train / name}: {here[stem]} beside it has the same name")
    return here


def _patches() -> dict[str, Patch]:
    """The patches that train_labels.csv lists, by id."""
    table, train, here = folder() / "train_labels.csv", folder() / "train", patches_here()
    patches: dict[str, Patch] = {}
    for line, row in _rows(table):
        where = f"{table}: line {line}"
        if len(row) != 2 or row[1] not in ("0", "1"):
            raise DataError(
                f"{where}: expected an id and a label of 0 or 1, found {','.join(row)[:80]!r}"
            )
        name = row[0]
        if not name or {"/", "\\"} & {*name}:
            raise DataError(
                f"{where}: expected an id, found {name[:80]!r}; it is the name of a patch, "
                "without a folder"
            )
        if name in patches:
            raise DataError(f"{where}: the id {name} is there twice")
        try:
            file = inside(train, here.get(name, f"{name}.tif"))
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        if name not in here:
            raise DataError(
                f"{file}: missing; {table.name} lists it in line {line}. Unpack the set again, or "
                "take the line out of the list"
            )
        stat_file(file)
        patches[name] = Patch(file, int(row[1]))
    return patches


def _rows(table: Path) -> Iterator[tuple[int, list[str]]]:
    """The lines of train_labels.csv that hold something, after the first, with their numbers."""
    try:
        text = read_bytes(table, "ids and labels").decode("utf-8-sig")
        reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True)
        titles = [cell.strip() for cell in next(reader, [])]
        if titles != ["id", "label"]:
            raise DataError(
                f"{table}: expected the columns id,label, found {','.join(titles)[:80]!r}"
            )
        for row in reader:
            cells = [cell.strip() for cell in row]
            if cells not in ([], [""]):
                yield reader.line_num, cells
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: cannot be read ({error})") from None


def _read_kaggle(classes: tuple[str, ...], validation: float) -> Dataset:
    patches = _patches()
    ids = sorted(patches)
    encoded = [name.encode() for name in ids]
    classed = [patches[name].label for name in ids]
    for_test = held_out(encoded, classed, 0.2)
    rest = np.flatnonzero(~for_test)
    aside = held_out([encoded[i] for i in rest], [classed[i] for i in rest], validation)
    # One split after the other in the decoded file, so that each of a mapped set is a slice of it.
    members = [rest[~aside], rest[aside], np.flatnonzero(for_test)]
    order = [ids[i] for i in np.concatenate(members)]
    files = [patches[name].file for name in order]

    def fill(pixels: Pixels) -> None:
        for row, file in enumerate(files):
            pixels[row] = read_picture(file, "RGB", (SIDE, SIDE))

    shape = (len(ids), SIDE, SIDE, 3)
    images = decoded("pcam-kaggle", files, shape, fill).permute(0, 3, 1, 2)
    targets = torch.tensor([patches[name].label for name in order], dtype=torch.int64)
    starts = np.cumsum([0, *map(len, members)]).tolist()
    train, valid, test = (
        Split(
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


def state() -> State:
    here = layouts_here()
    if not here:
        h5 = list(folder().glob("camelyonpatch_level_2_split_*.h5"))
        return State("part", f"{len(h5)} of the 6 official h5 files") if h5 else State("missing")
    if here[0] == "h5":
        return State("whole", "the official h5 files")
    images = len(patches_here())
    return State(
        "whole" if images >= KAGGLE_IMAGES else "part",
        f"{images:,} of the Kaggle edition's {KAGGLE_IMAGES:,} images",
    )


def is_whole(dataset: Dataset) -> bool:
    """Tell of the official files whether each holds all images; of the others counting tells."""
    images = tuple(map(len, (dataset.train, dataset.validation, dataset.test)))
    return layouts_here()[:1] != ["h5"] or images == tuple(H5_IMAGES.values())


def _download(part: str, kind: str, md5: str, drive: str) -> Download:
    name = f"camelyonpatch_level_2_split_{part}_{kind}.h5.gz"
    return Download(
        name,
        f"md5:{md5}",
        None,
        (
            f"https://zenodo.org/records/2546921/files/{name}?download=1",
            f"https://drive.usercontent.google.com/download?id={drive}&export=download&confirm=t",
        ),
    )


SOURCE = DataSource(
    name="patchcamelyon",
    about="327,680 pathology patches of 96x96 pixels, tumour or not",
    load=lambda data: load(data.layout or "h5", data.validation),
    keys=("layout", "validation"),
    resolve=resolve,
    state=state,
    is_whole=is_whole,
    origin=Origin(
        licence="CC0; cite Veeling et al. 2018",
        home="https://github.com/basveeling/pcam",
        folder="pcam",
        by_hand=(
            "put the six camelyonpatch_level_2_split_*.h5 files into {folder}/ (or the Kaggle "
            "edition's train/ and train_labels.csv)"
        ),
        downloads=(
            _download(
                "train",
                "x",
                "1571f514728f59376b705fc836ff4b63",
                "1Ka0XfEMiwgCYPdTI-vv6eUElOBnKFKQ2",
            ),
            _download(
                "train",
                "y",
                "35c2d7259d906cfc8143347bb8e05be7",
                "1269yhu3pZDP8UYFQs-NYs3FPwuK-nGSG",
            ),
            _download(
                "valid",
                "x",
                "d5b63470df7cfa627aeec8b9dc0c066e",
                "1hgshYGWK8V-eGRy8LToWJJgDU_rXWVJ3",
            ),
            _download(
                "valid",
                "y",
                "2b85f58b927af9964a4c15b8f7e8f179",
                "1bH8ZRbhSVAhScTS0p9-ZzGnX91cHT3uO",
            ),
            _download(
                "test",
                "x",
                "d8c2d60d490dbd479f8199bdfa0cf6ec",
                "1qV65ZqZvWzuIVthK8eVDhIwrbnsJdbg_",
            ),
            _download(
                "test",
                "y",
                "60a7035772fbdb7f34eb86d4420cf66a",
                "17BHrSrwWKjYsOgTMmoqrIjDy6Fa2o_gP",
            ),
        ),
    ),
)

TASK = Task(
    data=SOURCE,
    label="PatchCamelyon",
    about="327,680 pathology patches of 96x96 pixels, tumour or not (paper, Table 2)",
    output="classes",
    model="resnet56",
    loss="cross_entropy",
    epochs=50,
    batch_size=256,
    learning_rate=1e-3,
)
