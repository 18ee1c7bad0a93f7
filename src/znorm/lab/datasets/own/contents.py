"""All that is known of a folder of the user's before its images are decoded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from znorm.lab.datasets.own import masks
from znorm.lab.datasets.own.forms import listing_of
from znorm.lab.datasets.own.listing import Listing
from znorm.lab.datasets.own.parts import parts_of
from znorm.lab.datasets.own.reading import Facts, facts_of
from znorm.lab.datasets.own.rule import Rule, rule_of
from znorm.lab.errors import ConfigurationError, DataError

__all__ = ["TEST", "VALIDATION", "Contents", "contents_of", "listed", "share"]

# By default, shares of groups.
TEST, VALIDATION = 0.2, 0.2


@dataclass(frozen=True)
class Contents:
    """The images of a folder, their parts, and the rule by which they are read.

    Parameters
    ----------
    listing : Listing
    facts : mapping
        Of each file of images.
    strata : tuple of int
        Of each item the number of its class; of masks, of the rarest thing that is marked, or 0.
    parts : tuple of str
        Of each item.
    rule : Rule
    """

    listing: Listing
    facts: Mapping[Path, Facts]
    strata: tuple[int, ...]
    parts: tuple[str, ...]
    rule: Rule

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in order; of masks, of what is not marked and what is."""
        if self.rule.labels is not None:
            return ("not marked", *self.rule.labels)
        return self.listing.classes

    @property
    def digest(self) -> str:
        """Sixteen hex digits of what is learned from what, wherever the folder lies."""
        return self.listing.digest(self.parts)

    @property
    def unit(self) -> str | None:
        """ "mm" where the size of a pixel is known of every image of masks, else None."""
        known = all(one.spacing is not None for one in self.facts.values())
        return "mm" if self.listing.output == "mask" and known else None

    def in_part(self, part: str) -> list[int]:
        """The places of the items of a part."""
        return [place for place, one in enumerate(self.parts) if one == part]


def listed(folder: str, table: str | None) -> Listing:
    """The listing of a folder, by the paths that a specification has."""
    return listing_of(Path(folder), None if table is None else Path(table))


def contents_of(listing: Listing, chosen: Mapping[str, Any]) -> Contents:
    """All of a folder, with what the user has chosen.

    Parameters
    ----------
    listing : Listing
    chosen : mapping
        The keys of a specification's data that are set.

    Raises
    ------
    ConfigurationError
        For a choice that is not valid, or where parts cannot be made.
    DataError
        For a file that cannot be read or does not fit the others.
    """
    facts = {item.image: facts_of(item.image) for item in listing.items}
    axes = {one.axes: path for path, one in facts.items() if one.axes is not None}
    if len(axes) > 1:
        (first, path), (other, _), *_ = axes.items()
        raise DataError(
            f"{path}: its axes run {first}, and those of others {other}; save all volumes in one "
            "orientation, or what is left in some is right in others"
        )
    labels = masks.chosen_labels(chosen.get("labels"))
    if labels is not None and listing.output == "classes":
        raise ConfigurationError("data.labels: names what masks mark, and there are none here")
    if listing.output == "classes":
        numbers = {name: number for number, name in enumerate(listing.classes)}
        strata = [numbers[str(item.label)] for item in listing.items]
    else:
        values = _values(listing, facts)
        if labels is None:
            paths = [item.mask for item in listing.items if item.mask is not None]
            labels = masks.labels_of(zip(paths, values, strict=True))
        strata = _rarest(values)
    test, validation = share(chosen, "test_share", TEST), share(chosen, "validation", VALIDATION)
    parts = parts_of(listing, strata, test, validation, _fold(chosen))
    training = [
        (item.image, item.slice)
        for item, part in zip(listing.items, parts, strict=True)
        if part == "train"
    ]
    rule = rule_of(facts, training, listing.output, {**chosen, "labels": labels})
    return Contents(listing, facts, tuple(strata), tuple(parts), rule)


def _values(listing: Listing, facts: Mapping[Path, Facts]) -> list[tuple[float, ...]]:
    """The values of the mask of each item."""
    values = []
    for item in listing.items:
        assert item.mask is not None, "a listing of masks has one for each image"
        masks.check_form(item.mask, facts[item.image])
        values.append(masks.values_of(item.mask, item.slice))
    return values


def _rarest(values: Sequence[tuple[float, ...]]) -> list[int]:
    """For each mask the value that the fewest masks have, as a whole number; 0 if it is empty."""
    counts = Counter(value for of_mask in values for value in of_mask if value)
    return [
        int(min((value for value in of_mask if value), key=lambda v: (counts[v], v), default=0))
        for of_mask in values
    ]


def _fold(chosen: Mapping[str, Any]) -> int:
    fold = chosen.get("fold", 0)
    if isinstance(fold, bool) or not isinstance(fold, int) or fold < 0:
        raise ConfigurationError(f"data.fold: expected a whole number from 0, found {fold!r}")
    return fold


def share(chosen: Mapping[str, Any], key: str, default: float) -> float:
    """The share of a part: one of 1/2, 1/3, 1/4, ..., the nearest to what is chosen.

    Parts are folds, so that each group can be in one of them.
    """
    value = chosen.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.02 <= value <= 0.5:
        raise ConfigurationError(f"data.{key}: expected a share from 0.02 to 0.5, found {value!r}")
    return 1 / round(1 / value)
