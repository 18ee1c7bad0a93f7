"""Pictures in a folder of the user's, with their masks where they have some."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from znorm.lab.datasets import Split
from znorm.lab.datasets.files import Pixels, read_mask, read_picture, stat_file
from znorm.lab.datasets.own.reading import facts_of, read_slice
from znorm.lab.datasets.own.rule import Rule
from znorm.lab.errors import DataError
from znorm.lab.training.weights import Trained

__all__ = ["note_on_other_files", "read_pictures"]

SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp")
# Names of files that are not read, of which a note has so many.
_NAMED = 3


def read_pictures(
    folder: Path, home: Path, trained: Trained, output: str, rule: Rule | None = None
) -> tuple[tuple[str, ...], Split, bool]:
    """The pictures of a folder by name, with their masks if all of them have one.

    Parameters
    ----------
    folder, home : Path
        Of the pictures, and of the predictions, which are no pictures to read.
    trained : Trained
        Whose images they must be like.
    output : "classes" or "mask"
    rule : Rule, optional
        Of a run on the user's own images: by it those here are read, of any size. By default they
        must have the size and channels that the net was trained on.

    Returns
    -------
    names, images, whether the masks are known

    Raises
    ------
    DataError
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of pictures")
    files = {
        path.relative_to(folder).with_suffix("").as_posix(): path for path in _files(folder, home)
    }
    masks = {
        name: files[f"{name}_mask"]
        for name in files
        if output == "mask" and f"{name}_mask" in files
    }
    names = tuple(
        name for name in files if name.removesuffix("_mask") not in masks or name in masks
    )
    if not names:
        raise DataError(f"{folder}: no pictures in it; valid endings: {', '.join(SUFFIXES)}")
    if masks and len(masks) < len(names):
        lacking = next(name for name in names if name not in masks)
        raise DataError(f"{files[lacking]}: has no mask, and others have; give all or none one")
    mode = "L" if len(trained.mean) == 1 else "RGB"
    size = trained.image_size

    def read(path: Path) -> Pixels:
        if rule is None:
            return read_picture(path, mode, size, of_user=True)
        if rule.window is None and (kind := facts_of(path).kind) != "uint8":
            raise DataError(
                f"{path}: expected 8 bits a value, as the run's images have, found {kind}"
            )
        return rule.picture(read_slice(path))

    pixels = np.stack([read(files[name]) for name in names])
    images = torch.from_numpy(pixels.reshape(len(names), *size, -1)).permute(0, 3, 1, 2)
    if masks:
        whole = None if rule is not None else size
        read_masks = [read_mask(masks[name], whole, of_user=True) for name in names]
        marked = np.stack(read_masks if rule is None else [rule.mask(one) for one in read_masks])
        return names, Split(images, torch.from_numpy(marked), names), True
    shape = (len(names), *size) if output == "mask" else (len(names),)
    kind = torch.uint8 if output == "mask" else torch.int64
    return names, Split(images, torch.zeros(shape, dtype=kind), names), False


def _files(folder: Path, home: Path) -> Iterator[Path]:
    """Pictures in a folder, but for those that were written here."""
    seen: dict[Path, Path] = {}
    for path in _entries(folder, home.resolve()):
        if path.suffix.lower() not in SUFFIXES:
            continue
        stat_file(path)
        relative = path.relative_to(folder).as_posix()
        if relative != relative.encode(errors="replace").decode():
            raise DataError(f"{folder}: {relative!r} in it has a name that is no text; rename it")
        bare = path.with_suffix("")
        if bare in seen:
            raise DataError(f"{path}: {seen[bare].name} beside it has the same name")
        seen[bare] = path
        yield path


def _entries(folder: Path, written: Path) -> list[Path]:
    """All that is in a folder and in those within it, but for the folder of what is written.

    Raises
    ------
    DataError
        If one cannot be read; for a link to a folder, whose pictures would be missed.
    """
    entries = []
    for place, folders, files in os.walk(folder, onerror=_refuse):
        if Path(place).resolve() == written:
            folders.clear()  # nor is it gone on within it
            continue
        for path in (Path(place, name) for name in folders):
            if path.is_symlink() and path.resolve() != written:
                raise DataError(
                    f"{path}: a link to a folder, which is not followed; put the folder itself "
                    "there, or take the link away"
                )
        entries += [Path(place, name) for name in (*folders, *files)]
    return sorted(entries)


def note_on_other_files(folder: Path, home: Path) -> str | None:
    """A note on the files in a folder that are not of the kinds that are read, if there are any."""
    unread = [
        path.relative_to(folder).as_posix()
        for path in _entries(folder, home.resolve())
        if path.suffix.lower() not in SUFFIXES and not path.is_dir()
    ]
    return f"{folder}: {_named(unread)}" if unread else None


def _named(unread: Sequence[str]) -> str:
    files = "1 file" if len(unread) == 1 else f"{len(unread)} files"
    more = ", ..." if len(unread) > _NAMED else ""
    return f"{files} of other kinds not read: {', '.join(map(repr, unread[:_NAMED]))}{more}"


def _refuse(error: OSError) -> None:
    raise DataError(f"{error.filename}: cannot be read ({error.strerror})")
