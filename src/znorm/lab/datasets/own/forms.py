"""From a folder to the listing of its images: classes as folders, images beside masks, or a table.

FOLDER/CLASS/*.png                       classes; CLASS/PATIENT/*.png groups them
FOLDER/train/CLASS/*.png, FOLDER/test/...  classes, and the parts are the user's own
FOLDER/images/*.png, FOLDER/masks/*.png  masks, by the same name or NAME_mask
TABLE.csv                                file and label, or file and mask; group, part or fold
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from znorm.lab import csvfiles
from znorm.lab.datasets.dataset import RESERVED
from znorm.lab.datasets.files import listing, read_bytes
from znorm.lab.datasets.own.listing import Item, Listing
from znorm.lab.datasets.own.reading import DICOM, KINDS, facts_of, kind_of
from znorm.lab.datasets.split import SPLITS
from znorm.lab.errors import ConfigurationError, DataError

__all__ = ["listing_of"]

MOST_CLASSES = 200
_PARTS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
_COLUMNS = {
    "file": ("file", "image", "path", "filename"),
    "label": ("label", "class"),
    "mask": ("mask",),
    "group": ("group", "patient", "patient_id"),
    "part": ("part", "split"),
    "fold": ("fold",),
}


def listing_of(folder: Path, table: Path | None = None) -> Listing:
    """All images of a folder.

    Parameters
    ----------
    folder : Path
    table : Path, optional
        A CSV file of those to use; its files are relative to the folder.

    Raises
    ------
    ConfigurationError
        If nothing can be learned from what is there.
    DataError
        If a file is missing or unreadable, or a mask has no image or an image no mask.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of images")
    found = _from_folder(folder) if table is None else _from_table(folder, table)
    _check(found)
    return found


def _from_folder(folder: Path) -> Listing:
    names = sorted(entry.name for entry in _entries(folder) if entry.is_dir())
    if {"images", "masks"} <= set(names):
        return _with_masks(folder)
    parts = {name: _PARTS[name.lower()] for name in names if name.lower() in _PARTS}
    if parts and len(parts) == len(names):
        if len(set(parts.values())) < len(parts):
            raise ConfigurationError(
                f"{folder}: {', '.join(parts)} name one part twice; give each part one folder"
            )
        return _by_classes(folder, {folder / name: part for name, part in parts.items()})
    if "images" in names or "masks" in names:
        there, lacking = ("images", "masks") if "images" in names else ("masks", "images")
        raise ConfigurationError(f"{folder}: has {there} and no {lacking} beside it")
    return _by_classes(folder, {folder: None})


def _by_classes(folder: Path, homes: Mapping[Path, str | None]) -> Listing:
    """Classes as folders; folders within one of these are groups."""
    items: list[Item] = []
    unread: list[str] = []
    form = "a folder for each class"
    for home, part in homes.items():
        for entry in _entries(home):
            if entry.is_file():
                unread.append(entry.relative_to(folder).as_posix())
                continue
            for path in _files(entry):
                if kind_of(path) is None:
                    unread.append(path.relative_to(folder).as_posix())
                    continue
                inner = path.relative_to(entry)
                within = inner.parts[0] if len(inner.parts) > 1 else None
                items += _items(folder, path, entry.name, None, within, part)
    if any(part is not None for part in homes.values()):
        form = "folders for the parts, and in each a folder for each class"
    pictures = [name for name in unread if kind_of(Path(name)) is not None]
    if pictures and not items:
        raise ConfigurationError(
            f"{folder}: {len(pictures)} images lie in it directly; put those of each class in a "
            "folder of its own, or give a table (--table) of files and labels"
        )
    if pictures:
        raise ConfigurationError(
            f"{folder}: {pictures[0]} and {len(pictures) - 1} more images lie beside the folders "
            "of the classes; put each in one of them"
        )
    return Listing(folder, form, "classes", tuple(sorted(items, key=_name)), tuple(unread))


def _with_masks(folder: Path) -> Listing:
    images, unread = _by_stem(folder, folder / "images")
    masks, others = _by_stem(folder, folder / "masks")
    by_name = {name.removesuffix("_mask"): path for name, path in masks.items()}
    if len(by_name) < len(masks):
        twice = next(n for n in masks if n.endswith("_mask") and n.removesuffix("_mask") in masks)
        raise DataError(f"{masks[twice]}: another mask beside it has the same name without _mask")
    for name, path in images.items():
        if name not in by_name:
            raise DataError(
                f"{path}: has no mask; expected masks/{name} or masks/{name}_mask with an ending"
            )
    for name, path in by_name.items():
        if name not in images:
            raise DataError(f"{path}: has no image; expected images/{name} with an ending")
    items: list[Item] = []
    for name, path in images.items():
        parent = PurePosixPath(name).parent.as_posix()
        within = parent if parent != "." else None
        items += _items(folder, path, None, by_name[name], within, None)
    return Listing(
        folder, "images beside masks", "mask", tuple(sorted(items, key=_name)), (*unread, *others)
    )


def _by_stem(folder: Path, home: Path) -> tuple[dict[str, Path], list[str]]:
    """The files below a folder by their place without ending, and those that are not read."""
    named: dict[str, Path] = {}
    unread = []
    for path in _files(home):
        ending = kind_of(path)
        if ending is None:
            unread.append(path.relative_to(folder).as_posix())
            continue
        name = path.relative_to(home).as_posix()[: -len(ending)]
        if name in named:
            raise DataError(f"{path}: {named[name].name} beside it has the same name")
        named[name] = path
    return named, unread


def _from_table(folder: Path, table: Path) -> Listing:
    rows, columns = _rows(table)
    if ("label" in columns) == ("mask" in columns):
        what = "both label and mask" if "label" in columns else "neither label nor mask"
        raise ConfigurationError(f"{table}: has {what} among its columns; give one of them")
    if {"part", "fold"} <= columns.keys():
        raise ConfigurationError(f"{table}: has both part and fold among its columns; give one")
    items: list[Item] = []
    homes: dict[str, str] = {}
    seen: set[Path] = set()
    for number, row in enumerate(rows, 2):
        cells = {key: (row.get(column) or "").strip() for key, column in columns.items()}
        where = f"{table}, line {number}"
        path = _named(folder, cells["file"], where)
        if path in seen:
            raise DataError(f"{where}: {cells['file']} is there twice; give it once")
        seen.add(path)
        mask = _named(folder, cells["mask"], where) if "mask" in columns else None
        label = cells.get("label")
        if label == "":
            raise DataError(f"{where}: has no label")
        part = None
        if cells.get("part"):
            part = _PARTS.get(cells["part"].lower())
            if part is None:
                raise DataError(f"{where}: part {cells['part']!r}; expected {', '.join(SPLITS)}")
        elif "part" in columns:
            raise DataError(f"{where}: has no part; expected {', '.join(SPLITS)}")
        for column in ("fold", "group"):
            if cells.get(column) == "":
                raise DataError(f"{where}: has no {column}")
        group = cells.get("group") or None
        kind, mine = ("fold", cells["fold"]) if "fold" in columns else ("part", part)
        named = group is not None
        for item in _items(folder, path, label, mask, group, part, listed=named):
            home = homes.setdefault(item.group, mine or "")
            if home != (mine or ""):
                raise DataError(
                    f"{where}: {item.group} is in {mine} and, above, in {home}; a group, such as "
                    f"a patient, belongs to one {kind}"
                )
            items.append(item._replace(fold=cells.get("fold")))
    form = f"the table {table.name}"
    return Listing(
        folder, form, "mask" if "mask" in columns else "classes", tuple(sorted(items, key=_name))
    )


def _name(item: Item) -> str:
    return item.name


def _rows(table: Path) -> tuple[list[dict[str, str]], dict[str, str]]:
    """The rows of a table, and the name of each column that is used."""
    try:
        content = read_bytes(table, "a table")
        content.decode("utf-8-sig")
        rows = csvfiles.load(content)
    except ValueError as error:
        raise DataError(f"{table}: not a table in UTF-8 ({error})") from None
    if not rows:
        raise ConfigurationError(f"{table}: has no row below its names of columns")
    there = {name.strip().lower(): name for name in rows[0]}
    columns = {
        key: there[name] for key, names in _COLUMNS.items() for name in names if name in there
    }
    if "file" not in columns:
        raise ConfigurationError(
            f"{table}: has no column file; found {', '.join(there) or 'nothing'}"
        )
    return rows, columns


def _named(folder: Path, name: str, where: str) -> Path:
    """The file that a table names, which lies in the folder."""
    if not name or "\0" in name:
        raise DataError(f"{where}: {name[:80]!r} is no file in {folder}")
    whole = Path(os.path.normpath(folder / name))
    for home in (folder, folder.resolve()):
        if whole.is_relative_to(home):
            whole = folder / whole.relative_to(home)
            break
    if not whole.is_relative_to(folder) or not whole.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"{where}: {name[:80]!r} is no file in {folder}")
    path = whole
    if not path.is_file():
        raise DataError(f"{where}: {name[:80]} is not there; files are relative to {folder}")
    if kind_of(path) is None:
        raise DataError(f"{where}: {name[:80]} is of no kind that is read: {', '.join(KINDS)}")
    return path


def _items(
    folder: Path,
    path: Path,
    label: str | None,
    mask: Path | None,
    group: str | None,
    part: str | None,
    *,
    listed: bool = False,
) -> Iterator[Item]:
    """The images of a file: one, or the slices of a volume.

    Without a group of its own a volume is one, a DICOM file has its patient's, and a picture is by
    itself.
    """
    name = path.relative_to(folder).as_posix()
    kind = kind_of(path)
    facts = facts_of(path)
    # A folder may be of a series; the file knows whose it is. What a table says is the user's word.
    if kind in DICOM and facts.patient is not None and not listed:
        group = facts.patient
    for number in range(facts.slices):
        of_slice = f"{name}#{number:03}" if facts.slices > 1 else name
        yield Item(of_slice, path, number, label, mask, group or name, part)


def _files(folder: Path) -> list[Path]:
    """All files below a folder, by name."""
    found = []
    for entry in _entries(folder):
        found += _files(entry) if entry.is_dir() else [entry]
    return found


def _entries(folder: Path) -> list[Path]:
    """The entries of a folder that are not hidden, by name.

    Raises
    ------
    DataError
        If it cannot be read; for a link to a folder, whose images would be missed.
    """
    entries = [folder / name for name in listing(folder) if not name.startswith(".")]
    for entry in entries:
        if entry.name != entry.name.encode(errors="replace").decode():
            raise DataError(f"{folder}: {entry.name!r} in it has a name that is no text; rename it")
        if entry.is_symlink() and entry.is_dir():
            raise DataError(
                f"{entry}: a link to a folder, which is not followed; put the folder itself there"
            )
    return entries


def _check(found: Listing) -> None:
    """Refuse what nothing can be learned from, and a group in two parts."""
    folder = found.folder
    homes: dict[str, Item] = {}
    for item in found.items:
        first = homes.setdefault(item.group, item)
        if first.part != item.part:
            raise DataError(
                f"{item.image}: {item.group} is in {item.part} and, with {first.name}, in "
                f"{first.part}; a group, such as a patient, belongs to one part"
            )
    if not found.items:
        other = f"; {len(found.unread)} files of other kinds" if found.unread else ""
        raise ConfigurationError(
            f"{folder}: no images in it{other}; put those of each class in a folder of its own, or "
            "images and masks in two folders of these names"
        )
    if found.output == "mask":
        return
    counts = Counter(item.label for item in found.items)
    if taken := [name for name in counts if name in RESERVED]:
        raise ConfigurationError(
            f"{folder}: class {taken[0]!r} has the name of a column of predictions; rename it"
        )
    if len(counts) < 2:
        raise ConfigurationError(
            f"{folder}: one class only, {next(iter(counts))!r}; two or more are needed"
        )
    if len(counts) > MOST_CLASSES:
        raise ConfigurationError(
            f"{folder}: {len(counts):,} classes; {MOST_CLASSES} at most: are these folders of "
            "patients? Then put them in folders of classes, or give a table"
        )
    few = [name for name, count in counts.items() if count < 3]
    if few:
        raise ConfigurationError(
            f"{folder}: class {few[0]!r} has {counts[few[0]]} image"
            f"{'' if counts[few[0]] == 1 else 's'}; three or more are needed, for training, "
            "validation and test"
        )
