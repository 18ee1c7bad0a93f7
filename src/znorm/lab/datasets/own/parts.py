"""The part of each image: the user's own, or dealt out by group, alike in every class."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np

from znorm.lab.datasets.own.listing import Listing
from znorm.lab.errors import ConfigurationError

__all__ = ["parts_of"]


def parts_of(
    listing: Listing, strata: Sequence[int], test: float, validation: float, fold: int = 0
) -> list[str]:
    """The part of each item, no group in two of them.

    Where the user has made folds, one of them is the test part. Else it is one of ``1 / test``, by
    scikit-learn's stratified folds of groups, shuffled by a fixed seed; and so is the validation
    part of what is left.

    Parameters
    ----------
    listing : Listing
    strata : sequence of int
        Of each item the class, or whether its mask marks anything: parts have the same mix.
    test, validation : float
        Shares, of all images and of those that are no test images.
    fold : int
        Which of the folds is the test part: each image is in it for one of them.

    Raises
    ------
    ConfigurationError
        If there are too few groups, or a class has none in a part.
    """
    given = [item.part for item in listing.items]
    if any(given) and fold:
        raise ConfigurationError("data.fold: the parts are your own, and there are no folds")
    if any(given):
        parts = [part or "" for part in given]
    elif folds := listing.folds:
        if fold >= len(folds):
            raise ConfigurationError(f"data.fold: expected 0 to {len(folds) - 1}, found {fold}")
        parts = ["test" if item.fold == folds[fold] else "train" for item in listing.items]
    else:
        everything = np.arange(len(listing.items))
        parts = ["train"] * len(everything)
        aside = _fold(listing, strata, everything, test, fold)
        for place in everything[aside].tolist():
            parts[place] = "test"
    if "validation" not in parts:
        rest = np.array([place for place, part in enumerate(parts) if part == "train"])
        for place in rest[_fold(listing, strata, rest, validation, 0)].tolist():
            parts[place] = "validation"
    _check(listing, strata, parts)
    return parts


def _fold(
    listing: Listing,
    strata: Sequence[int],
    places: np.ndarray[tuple[int, ...], np.dtype[np.intp]],
    share: float,
    number: int,
) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """The items of one fold, among these."""
    from sklearn.model_selection import StratifiedGroupKFold

    wanted = round(1 / share)
    groups = [listing.items[place].group for place in places.tolist()]
    count = len(set(groups))
    if count < 2:
        raise ConfigurationError(
            f"{listing.folder}: {count} group, such as a patient, is too few to be divided into "
            "training, validation and test; three are needed at least"
        )
    # Of few groups a part has one, which is then more than its share: pages tell the numbers.
    folds = min(wanted, count)
    if number >= folds and number < wanted:
        raise ConfigurationError(
            f"{listing.folder}: {count} groups, such as patients, are too few for {wanted} folds"
        )
    if number >= folds:
        raise ConfigurationError(f"data.fold: expected 0 to {folds - 1}, found {number}")
    labels = np.asarray(strata)[places]
    chosen = np.zeros(len(places), dtype=bool)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes with few groups, of which ours tells
        divisions = StratifiedGroupKFold(folds, shuffle=True, random_state=0).split(
            places, labels, groups
        )
        for place, (_, inside) in enumerate(divisions):
            if place == number:
                chosen[inside] = True
    return chosen


def _check(listing: Listing, strata: Sequence[int], parts: Sequence[str]) -> None:
    present: Mapping[str, set[int]] = {
        name: {one for one, part in zip(strata, parts, strict=True) if part == name}
        for name in ("train", "validation", "test")
    }
    for name, classes in present.items():
        if not classes:
            raise ConfigurationError(f"{listing.folder}: the {name} part has no image")
        lacking = sorted(set(strata) - classes)
        if lacking and listing.output == "classes":
            label = listing.classes[lacking[0]]
            raise ConfigurationError(
                f"{listing.folder}: class {label!r} has no image in the {name} part: its images "
                "are in too few groups; give the parts by a column part of a table"
            )
