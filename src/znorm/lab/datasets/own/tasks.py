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
from znorm.lab.datasets.files import marked
from znorm.lab.datasets.own.forms import listing_of
from znorm.lab.datasets.own.listing import Listing
from znorm.lab.datasets.own.parts import parts_of
from znorm.lab.datasets.own.reading import Facts, facts_of, read_slice
from znorm.lab.datasets.own.rule import Rule, rule_of
from znorm.lab.datasets.source import DataSource, State
from znorm.lab.datasets.split import SPLITS
from znorm.lab.datasets.task import Task
from znorm.lab.errors import ConfigurationError, DataError

__all__ = ["CLASSES", "MASKS", "rule_of_data", "task_of"]

_KEYS = (
    "folder",
    "table",
    "contents",
    "size",
    "channels",
    "window",
    "test_share",
    "validation",
    "fold",
)
TEST, VALIDATION = 0.2, 0.2


def task_of(folder: str, table: str | None) -> str:
    """The name of the task that a folder is for.

    Raises
    ------
    ConfigurationError, DataError
        As :func:`listing_of` does.
    """
    return CLASSES.data.name if _listed(folder, table).output == "classes" else MASKS.data.name


def _listed(folder: str, table: str | None) -> Listing:
    return listing_of(Path(folder), None if table is None else Path(table))


def _facts_of(listing: Listing) -> Mapping[Path, Facts]:
    return {item.image: facts_of(item.image) for item in listing.items}


def _marked(path: Path, number: int, image: tuple[int, int]) -> Pixels:
    """A mask of the user's: 1 where it marks, 0 elsewhere.

    Raises
    ------
    DataError
        If it has other values, or another size than its image.
    """
    pixels = read_slice(path, number)
    if pixels.shape[2] == 3 and (pixels == pixels[..., :1]).all():
        pixels = pixels[..., :1]
    if pixels.shape[2] != 1:
        raise DataError(f"{path}: expected a mask in grey, found colours; save it in grey")
    mask = marked(path, pixels[..., 0])
    if pixels.shape[:2] != image:
        found = "x".join(map(str, pixels.shape[:2]))
        raise DataError(
            f"{path}: expected {image[0]}x{image[1]} pixels, as its image has, found {found}"
        )
    return mask


def _strata(listing: Listing, facts: Mapping[Path, Facts]) -> list[int]:
    """The class of each item; of masks, whether any pixel is marked."""
    if listing.output == "classes":
        numbers = {name: number for number, name in enumerate(listing.classes)}
        return [numbers[str(item.label)] for item in listing.items]
    strata = []
    for item in listing.items:
        assert item.mask is not None
        of_mask, of_image = facts_of(item.mask), facts[item.image]
        if of_mask.slices != of_image.slices:
            raise DataError(
                f"{item.mask}: expected {of_image.slices} slices, as its image has, found "
                f"{of_mask.slices}"
            )
        size = (of_image.height, of_image.width)
        strata.append(int(_marked(item.mask, item.slice, size).any()))
    return strata


def _resolve(output: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """All keys of a specification, from what is chosen and what is there."""
    folder, table = _text(chosen, "folder"), _text(chosen, "table")
    if folder is None:
        raise ConfigurationError("data.folder: give the folder of your images, as --data FOLDER")
    folder = str(Path(folder).expanduser().absolute())
    table = None if table is None else str(Path(table).expanduser().absolute())
    listing = _listed(folder, table)
    if listing.output != output:
        other = "classes and no masks" if output == "mask" else "masks and no classes"
        raise ConfigurationError(f"{folder}: has {other}; leave task out, and it follows")
    test, validation = _share(chosen, "test_share", TEST), _share(chosen, "validation", VALIDATION)
    fold = chosen.get("fold", 0)
    if isinstance(fold, bool) or not isinstance(fold, int) or fold < 0:
        raise ConfigurationError(f"data.fold: expected a whole number from 0, found {fold!r}")
    facts = _facts_of(listing)
    parts = parts_of(listing, _strata(listing, facts), test, validation, fold)
    training = [
        (item.image, item.slice)
        for item, part in zip(listing.items, parts, strict=True)
        if part == "train"
    ]
    rule = rule_of(facts, training, listing.output, chosen)
    resolved = {
        "folder": folder,
        "table": table,
        "contents": listing.digest(parts),
        "size": rule.size,
        "channels": rule.channels,
        "window": rule.window,
        "test_share": test,
        "validation": validation,
        "fold": fold or None,
    }
    asked = chosen.get("contents")
    if asked is not None and asked != resolved["contents"]:
        raise _changed(folder)
    return resolved


def rule_of_data(data: DataSpec) -> Rule | None:
    """The rule of a specification; None for sets that have none."""
    if data.size is None or data.channels is None:
        return None
    return Rule(data.channels, data.window, data.size)


def _text(chosen: Mapping[str, Any], key: str) -> str | None:
    value = chosen.get(key)
    if value is not None and (not isinstance(value, str) or not value or "\0" in value):
        raise ConfigurationError(f"data.{key}: expected a path, found {value!r}")
    return value


def _share(chosen: Mapping[str, Any], key: str, default: float) -> float:
    value = chosen.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.02 <= value <= 0.5:
        raise ConfigurationError(f"data.{key}: expected a share from 0.02 to 0.5, found {value!r}")
    return float(value)


def _changed(folder: str) -> DataError:
    return DataError(
        f"{folder}: holds other files, labels or groups than the runs were begun with; put those "
        "back, or begin in another folder for runs"
    )


def _load(data: DataSpec) -> Dataset:
    assert data.folder is not None
    listing = _listed(data.folder, data.table)
    facts = _facts_of(listing)
    rule = rule_of_data(data)
    assert rule is not None
    strata = _strata(listing, facts)
    parts = parts_of(
        listing, strata, data.test_share or TEST, data.validation or VALIDATION, data.fold or 0
    )
    if listing.digest(parts) != data.contents:
        raise _changed(data.folder)
    whole = _pixels(listing, facts, rule)
    images = whole[..., : rule.channels].permute(0, 3, 1, 2)
    targets = torch.tensor(strata) if listing.output == "classes" else whole[..., rule.channels]
    mapped = not fits_in_memory(tuple(whole.shape))
    groups = listing.grouped

    def split(name: str) -> Split:
        rows = [row for row, part in enumerate(parts) if part == name]
        index = torch.tensor(rows, dtype=torch.int64)
        return Split(
            images[index],
            targets[index],
            tuple(listing.items[row].name for row in rows),
            tuple(listing.items[row].group for row in rows) if groups else (),
            mapped,
        )

    train, validation, test = map(split, SPLITS)
    notes = _notes(listing, parts, facts, rule)
    return Dataset(train, validation, test, listing.classes, tuple(notes))


def _pixels(listing: Listing, facts: Mapping[Path, Facts], rule: Rule) -> torch.Tensor:
    """All images by the rule, and behind their channels the masks: (N, H, W, channels)."""
    masks = listing.output == "mask"
    shape = (len(listing.items), *rule.size, rule.channels + masks)

    def fill(pixels: Pixels) -> None:
        for row, item in enumerate(listing.items):
            pixels[row, ..., : rule.channels] = rule.picture(read_slice(item.image, item.slice))
            if item.mask is not None:
                of_image = facts[item.image]
                size = (of_image.height, of_image.width)
                mask = _marked(item.mask, item.slice, size)
                pixels[row, ..., rule.channels] = rule.mask(mask)

    digest = hashlib.sha256(f"{rule} {listing.folder}".encode()).hexdigest()[:8]
    return decoded(f"own-{digest}", listing.files, shape, fill)


def _notes(
    listing: Listing, parts: Sequence[str], facts: Mapping[Path, Facts], rule: Rule
) -> list[str]:
    sizes = {(one.height, one.width) for one in facts.values()}
    smallest, largest = min(sizes), max(sizes)
    there = f"{smallest[0]}x{smallest[1]}"
    if len(sizes) > 1:
        there += f" to {largest[0]}x{largest[1]}"
    notes = [
        f"Your images, {listing.form}: {len(listing.items):,} of {there} pixels, taken as "
        f"{rule.text}."
    ]
    if any(item.part for item in listing.items):
        notes.append("The parts are your own.")
    if listing.grouped:
        counts = {
            name: len({i.group for i, p in zip(listing.items, parts, strict=True) if p == name})
            for name in SPLITS
        }
        notes.append(
            f"Split by group, such as a patient: {counts['train']} for training, "
            f"{counts['validation']} for validation, {counts['test']} for test; none is in two."
        )
    else:
        notes.append(
            "Every image is a group of its own: if several are of one patient, scores are "
            "optimistic; give groups by folders within the classes, or in a table."
        )
    if listing.unread:
        notes.append(
            f"{len(listing.unread)} files of other kinds were not read, such as "
            f"{listing.unread[0]!r}."
        )
    return notes


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
