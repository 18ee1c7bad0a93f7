"""The two tasks of the user's own images: classes, and masks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from znorm.lab.datasets.data_spec import DataSpec
from znorm.lab.datasets.dataset import Dataset, Split
from znorm.lab.datasets.decoded import Pixels, decoded, fits_in_memory
from znorm.lab.datasets.own.contents import TEST, VALIDATION, Contents, contents_of, listed
from znorm.lab.datasets.own.masks import numbered
from znorm.lab.datasets.own.notes import notes_of
from znorm.lab.datasets.own.reading import read_slice
from znorm.lab.datasets.own.rule import Rule
from znorm.lab.datasets.source import DataSource, State
from znorm.lab.datasets.split import SPLITS
from znorm.lab.datasets.task import Task
from znorm.lab.datasets.tiles import Tiles
from znorm.lab.errors import ConfigurationError, DataError

__all__ = ["CLASSES", "MASKS", "contents_of_data", "files_of_data", "rule_of_data", "task_of"]

_KEYS = (
    "folder",
    "table",
    "contents",
    "size",
    "channels",
    "window",
    "overlap",
    "labels",
    "unit",
    "test_share",
    "validation",
    "fold",
)


def task_of(folder: str, table: str | None) -> str:
    """The name of the task that a folder is for.

    Raises
    ------
    ConfigurationError, DataError
        As :func:`listing_of` does.
    """
    return CLASSES.data.name if listed(folder, table).output == "classes" else MASKS.data.name


def _resolve(output: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """All keys of a specification, from what is chosen and what is there."""
    folder, table = _text(chosen, "folder"), _text(chosen, "table")
    if folder is None:
        raise ConfigurationError("data.folder: give the folder of your images, as --data FOLDER")
    folder = str(Path(folder).expanduser().absolute())
    table = None if table is None else str(Path(table).expanduser().absolute())
    listing = listed(folder, table)
    if listing.output != output:
        other = "classes and no masks" if output == "mask" else "masks and no classes"
        raise ConfigurationError(f"{folder}: has {other}; leave task out, and it follows")
    contents = contents_of(listing, chosen)
    asked = chosen.get("contents")
    if asked is not None and asked != contents.digest:
        raise _changed(folder)
    unit = chosen.get("unit")
    if unit is not None and unit != contents.unit:
        raise ConfigurationError(
            f"data.unit: follows from the images, found {unit!r}; leave it out"
        )
    rule, folds = contents.rule, listing.folds
    return {
        "folder": folder,
        "table": table,
        "contents": contents.digest,
        "size": rule.size,
        "channels": rule.channels,
        "window": rule.window,
        "overlap": rule.overlap,
        "labels": rule.labels,
        "unit": contents.unit,
        "test_share": float(chosen.get("test_share", 1 / len(folds) if folds else TEST)),
        "validation": float(chosen.get("validation", VALIDATION)),
        "fold": chosen.get("fold", 0) or None,
    }


def rule_of_data(data: DataSpec) -> Rule | None:
    """The rule of a specification; None for sets that have none."""
    if data.size is None or data.channels is None:
        return None
    return Rule(data.channels, data.window, data.size, data.overlap, data.labels)


def _text(chosen: Mapping[str, Any], key: str) -> str | None:
    value = chosen.get(key)
    if value is not None and (not isinstance(value, str) or not value or "\0" in value):
        raise ConfigurationError(f"data.{key}: expected a path, found {value!r}")
    return value


def _changed(folder: str) -> DataError:
    return DataError(
        f"{folder}: holds other files, labels or groups than the runs were begun with; put those "
        "back, or begin in another folder for runs"
    )


def files_of_data(data: DataSpec) -> dict[str, Path]:
    """The file of each of the user's own images, by its name; none of other data sets.

    Raises
    ------
    ConfigurationError, DataError
        If the folder cannot be read.
    """
    if data.folder is None:
        return {}
    return {item.name: item.image for item in listed(data.folder, data.table).items}


def contents_of_data(data: DataSpec) -> Contents:
    """All that is known of the folder of a specification.

    Raises
    ------
    ConfigurationError, DataError
        As :func:`contents_of` does; if the folder holds other things than it did.
    """
    assert data.folder is not None, "a specification of the user's own images has a folder"
    contents = contents_of(listed(data.folder, data.table), data.model_dump(exclude_none=True))
    if contents.digest != data.contents:
        raise _changed(data.folder)
    return contents


def _load(data: DataSpec) -> Dataset:
    contents = contents_of_data(data)
    tiles = _tiles(contents)
    whole = _pixels(contents, len(contents.listing.items) if tiles is None else len(tiles.picture))
    train, validation, test = (_split(contents, whole, tiles, part) for part in SPLITS)
    return Dataset(train, validation, test, contents.classes, tuple(notes_of(contents)))


def _split(contents: Contents, whole: torch.Tensor, tiles: Tiles | None, part: str) -> Split:
    """A part of all images by the rule, behind whose channels the masks stand."""
    listing, rule = contents.listing, contents.rule
    items = contents.in_part(part)
    index = torch.tensor(items, dtype=torch.int64)
    if tiles is not None:
        index = torch.isin(tiles.picture, index).nonzero().flatten()
        tiles = tiles.take(index)
        items = tiles.picture.tolist()
    chosen = whole[index]
    is_mask = listing.output == "mask"
    names = [listing.items[place].name for place in items]
    if tiles is not None:
        corners = tiles.corner.tolist()
        names = [f"{name}@{y},{x}" for name, (y, x) in zip(names, corners, strict=True)]
    patients = [listing.items[place].group for place in items] if listing.grouped else []
    return Split(
        chosen[..., : rule.channels].permute(0, 3, 1, 2),
        chosen[..., rule.channels] if is_mask else torch.tensor(contents.strata)[index],
        tuple(names),
        tuple(patients),
        not fits_in_memory(tuple(whole.shape)),
        _spacing(contents, items),
        tiles,
    )


def _tiles(contents: Contents) -> Tiles | None:
    """The places of all tiles, the pictures in order of the listing."""
    if contents.rule.overlap is None:
        return None
    sizes, pictures, corners = [], [], []
    for number, item in enumerate(contents.listing.items):
        of_image = contents.facts[item.image]
        sizes.append((of_image.height, of_image.width))
        places = contents.rule.places(*sizes[-1]) or []
        pictures += [number] * len(places)
        corners += places
    items = contents.listing.items
    return Tiles(
        torch.tensor(pictures),
        torch.tensor(corners),
        tuple(sizes),
        tuple(item.name for item in items),
    )


def _spacing(contents: Contents, items: Sequence[int]) -> torch.Tensor | None:
    """Millimetres from pixel to pixel, as large as the rule makes them."""
    if contents.unit is None:
        return None
    rows = []
    for place in items:
        of_image = contents.facts[contents.listing.items[place].image]
        assert of_image.spacing is not None
        there = (of_image.height, of_image.width)
        sides = there if contents.rule.overlap is not None else contents.rule.size
        pairs = zip(of_image.spacing, there, sides, strict=True)
        rows.append([one * before / after for one, before, after in pairs])
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 2)


def _pixels(contents: Contents, count: int) -> torch.Tensor:
    """All images by the rule, and behind their channels the masks: (N, H, W, channels)."""
    listing, rule = contents.listing, contents.rule
    shape = (count, *rule.size, rule.channels + (listing.output == "mask"))

    def fill(pixels: Pixels) -> None:
        row = 0
        for item in listing.items:
            images = rule.pictures(read_slice(item.image, item.slice))
            rows = slice(row, row + len(images))
            pixels[rows, ..., : rule.channels] = images
            if item.mask is not None:
                of_image = contents.facts[item.image]
                size = (of_image.height, of_image.width)
                numbers = numbered(item.mask, item.slice, rule.labels, size)
                pixels[rows, ..., rule.channels] = rule.masks(numbers)
            row += len(images)

    digest = hashlib.sha256(f"{rule} {listing.folder}".encode()).hexdigest()[:8]
    return decoded(f"own-{digest}", listing.files, shape, fill)


CLASSES = Task(
    data=DataSource(
        name="own_classes",
        about="your own images, by class: znorm compare --data FOLDER",
        load=_load,
        keys=_KEYS,
        resolve=lambda chosen: _resolve("classes", chosen),
        state=lambda: State("missing"),
    ),
    label="Your images",
    about="your own images, by class: --data FOLDER",
    output="classes",
    model="resnet20",
    loss="cross_entropy",
    epochs=10,
    batch_size=32,
    learning_rate=1e-3,
    augment="flip",
)

MASKS = Task(
    data=DataSource(
        name="own_masks",
        about="your own images with masks: znorm compare --data FOLDER",
        load=_load,
        keys=_KEYS,
        resolve=lambda chosen: _resolve("mask", chosen),
        state=lambda: State("missing"),
    ),
    label="Your images and masks",
    about="your own images with masks: --data FOLDER",
    output="mask",
    model="attention_unet",
    loss="dice_cross_entropy",
    epochs=10,
    batch_size=16,
    learning_rate=1e-3,
    augment="flip",
)
