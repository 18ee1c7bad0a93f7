"""The two tasks of the user's own images: classes, and masks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from znorm.lab.datasets.data_spec import DataSpec
from znorm.lab.datasets.dataset import Dataset
from znorm.lab.datasets.own.contents import (
    TEST,
    VALIDATION,
    Contents,
    contents_of,
    listed,
    share,
)
from znorm.lab.datasets.own.listing import Listing
from znorm.lab.datasets.own.loading import dataset_of
from znorm.lab.datasets.own.rule import Rule
from znorm.lab.datasets.source import DataSource, State
from znorm.lab.datasets.task import Task
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
    "folds",
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
    rule = contents.rule
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
        **_shares(listing, chosen),
        "fold": chosen.get("fold", 0) or None,
        "folds": _folds(listing, chosen),
    }


def _shares(listing: Listing, chosen: Mapping[str, Any]) -> dict[str, float | None]:
    """The shares of parts that were not the user's own."""
    given = {item.part for item in listing.items}
    test: float | None = share(chosen, "test_share", TEST)
    if listing.folds:
        test = 1 / len(listing.folds)
    return {
        "test_share": None if given != {None} else test,
        "validation": None if "validation" in given else share(chosen, "validation", VALIDATION),
    }


def _folds(listing: Listing, chosen: Mapping[str, Any]) -> int | None:
    """The number of folds of which each is to be tested; None where one part is."""
    folds = chosen.get("folds")
    if folds is None:
        return None
    if type(folds) is not int or not 2 <= folds <= 50 or chosen.get("fold", 0) >= folds:
        raise ConfigurationError(
            f"data.folds: expected 2 to 50, more than data.fold, found {folds!r}"
        )
    if listing.folds and len(listing.folds) != folds:
        named = ", ".join(listing.folds)[:80]
        raise ConfigurationError(f"folds: the table has {len(listing.folds)}, {named}")
    return folds


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
    return dataset_of(contents_of_data(data))


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
