"""The content of a folder of the user's: images, and of each the class or mask, group and part."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

__all__ = ["Item", "Listing"]

Output = Literal["classes", "mask"]


class Item(NamedTuple):
    """One image.

    Parameters
    ----------
    name : str
        On pages and in tables: the file's path in the folder, and the number of a volume's slice.
    image : Path
    slice : int
        In a volume; 0 in a file of one picture.
    label : str or None
        The class.
    mask : Path or None
    group : str
        A patient, or whatever else must not be in two parts.
    part : str or None
        "train", "validation" or "test", where the user says so.
    fold : str or None
        The name of its fold, where the user has made some.
    """

    name: str
    image: Path
    slice: int
    label: str | None
    mask: Path | None
    group: str
    part: str | None
    fold: str | None = None


@dataclass(frozen=True)
class Listing:
    """All images of a folder.

    Parameters
    ----------
    folder : Path
    form : str
        In a few words, how it was read.
    output : "classes" or "mask"
    items : tuple of Item
        By name.
    unread : tuple of str
        Files in it that are of no kind that is read.
    """

    folder: Path
    form: str
    output: Output
    items: tuple[Item, ...]
    unread: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in order; of masks, of what is not marked and what is."""
        if self.output == "mask":
            return ("not marked", "marked")
        return tuple(sorted({str(item.label) for item in self.items}))

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(sorted({item.group for item in self.items}))

    @property
    def folds(self) -> tuple[str, ...]:
        """The names of the user's own folds, in order; none where there are none."""
        names = {item.fold for item in self.items if item.fold is not None}
        return tuple(sorted(names, key=lambda name: (len(name), name)))

    @property
    def grouped(self) -> bool:
        """True where a group has several images."""
        return len(self.groups) < len(self.items)

    @property
    def files(self) -> list[Path]:
        """Every file that is read, once."""
        named: dict[Path, None] = {}
        for item in self.items:
            named[item.image] = None
            if item.mask is not None:
                named[item.mask] = None
        return list(named)

    def digest(self, parts: Sequence[str]) -> str:
        """Sixteen hex digits of what is learned from what, wherever the folder lies.

        ``parts`` has the part of each item.
        """
        rows = [
            (
                item.name,
                item.label,
                None if item.mask is None else self._inside(item.mask),
                item.group,
                part,
            )
            for item, part in zip(self.items, parts, strict=True)
        ]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]

    def _inside(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()
