"""Pictures in a folder of the user's, with their masks where they have some."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from znorm.lab.datasets import Split
from znorm.lab.datasets.files import Pixels, read_mask, read_picture, stat_file
from znorm.lab.datasets.own.masks import check_form, numbered
from znorm.lab.datasets.own.reading import KINDS, VOLUMES, facts_of, kind_of, read_slice
from znorm.lab.datasets.own.rule import Rule
from znorm.lab.datasets.tiles import Tiles
from znorm.lab.errors import DataError
from znorm.lab.training.weights import Trained

__all__ = ["Pictures", "Source", "note_on_other_files", "read_pictures"]

SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp")
# Names of files that are not read, of which a note has so many.
_NAMED = 3


@dataclass(frozen=True)
class Source:
    """The file of a picture, and the slice in it; its mask's file, where it has one."""

    path: Path
    slice: int = 0
    mask: Path | None = None


@dataclass(frozen=True)
class Pictures:
    """Pictures to predict.

    Parameters
    ----------
    names : tuple of str
        Of each picture.
    split : Split
        As the net takes them: a picture an image, or its tiles.
    truth : bool
        Whether the targets of the split are known.
    sources : tuple of Source
        Of each picture; empty where the images of the split are all that there is.
    rule : Rule or None
        By which the sources became images.
    """

    names: tuple[str, ...]
    split: Split
    truth: bool
    sources: tuple[Source, ...] = ()
    rule: Rule | None = None


def read_pictures(
    folder: Path, home: Path, trained: Trained, output: str, rule: Rule | None = None
) -> Pictures:
    """The pictures of a folder by name, with their masks if all of them have one.

    Parameters
    ----------
    folder, home : Path
        Of the pictures, and of the predictions, which are no pictures to read.
    trained : Trained
        Whose images they must be like.
    output : "classes" or "mask"
    rule : Rule, optional
        Of a run on the user's own images: by it those here are read, of any size and kind that the
        run could read. By default they must have the size and channels that the net was trained on.

    Raises
    ------
    DataError
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of pictures")
    kinds = SUFFIXES if rule is None else KINDS
    files = {
        _bare(path.relative_to(folder)).as_posix(): path for path in _files(folder, home, kinds)
    }
    if rule is not None and output == "mask" and {"images", "masks"} <= _folders(folder):
        files = _beside(files)
    masks = {
        name: files[f"{name}_mask"]
        for name in files
        if output == "mask" and f"{name}_mask" in files
    }
    names = tuple(
        name for name in files if name.removesuffix("_mask") not in masks or name in masks
    )
    if not names:
        raise DataError(f"{folder}: no pictures in it; valid endings: {', '.join(kinds)}")
    if masks and len(masks) < len(names):
        lacking = next(name for name in names if name not in masks)
        raise DataError(f"{files[lacking]}: has no mask, and others have; give all or none one")
    if rule is not None:
        return _by_rule({name: files[name] for name in names}, masks, output, rule)
    mode = "L" if len(trained.mean) == 1 else "RGB"
    size = trained.image_size
    pixels = np.stack([read_picture(files[name], mode, size, of_user=True) for name in names])
    images = torch.from_numpy(pixels.reshape(len(names), *size, -1)).permute(0, 3, 1, 2)
    if masks:
        marked = np.stack([read_mask(masks[name], size, of_user=True) for name in names])
        return Pictures(names, Split(images, torch.from_numpy(marked), names), truth=True)
    return Pictures(names, Split(images, _no_targets(images, output), names), truth=False)


def _folders(folder: Path) -> set[str]:
    return {entry.name for entry in os.scandir(folder) if entry.is_dir()}


def _beside(files: dict[str, Path]) -> dict[str, Path]:
    """The files of a folder with images and masks in two of its own, by the names of images."""
    named = {}
    for name, path in files.items():
        kind, _, inner = name.partition("/")
        if kind == "images":
            named[inner] = path
        elif kind == "masks":
            named[f"{inner.removesuffix('_mask')}_mask"] = path
    return named


def _by_rule(files: dict[str, Path], masks: dict[str, Path], output: str, rule: Rule) -> Pictures:
    names: list[str] = []
    sources: list[Source] = []
    sizes: list[tuple[int, int]] = []
    of_each: list[Pixels] = []
    true: list[Pixels] = []
    for name, path in files.items():
        facts = facts_of(path)
        if rule.window is None and facts.kind != "uint8":
            raise DataError(
                f"{path}: expected 8 bits a value, as the run's images have, found {facts.kind}"
            )
        if rule.window is not None and rule.window[1] > 255 and facts.kind == "uint8":
            raise DataError(
                f"{path}: expected values up to {rule.window[1]:g}, as the run's images have, "
                "found 8 bits"
            )
        size = (facts.height, facts.width)
        mask = masks.get(name)
        if mask is not None:
            check_form(mask, facts)
        for number in range(facts.slices):
            names.append(f"{name}#{number:03}" if kind_of(path) in VOLUMES else name)
            sources.append(Source(path, number, mask))
            sizes.append(size)
            of_each.append(rule.pictures(read_slice(path, number)))
            if mask is not None:
                true.append(rule.masks(numbered(mask, number, rule.labels, size)))
    images = torch.from_numpy(np.concatenate(of_each)).permute(0, 3, 1, 2)
    targets = torch.from_numpy(np.concatenate(true)) if true else _no_targets(images, output)
    tiles = None
    if rule.overlap is not None:
        corners = [rule.places(*size) or [] for size in sizes]
        counted = torch.tensor([len(one) for one in corners])
        tiles = Tiles(
            torch.arange(len(names)).repeat_interleave(counted),
            torch.tensor([corner for one in corners for corner in one]),
            tuple(sizes),
            tuple(names),
        )
    split = Split(images, targets, () if tiles else tuple(names), tiles=tiles)
    return Pictures(tuple(names), split, bool(masks), tuple(sources), rule)


def _no_targets(images: torch.Tensor, output: str) -> torch.Tensor:
    if output == "mask":
        return torch.zeros(len(images), *images.shape[2:], dtype=torch.uint8)
    return torch.zeros(len(images), dtype=torch.int64)


def _bare(path: Path) -> Path:
    """The path without its ending, which may have two points."""
    ending = kind_of(path)
    return path.with_name(path.name[: -len(ending)]) if ending else path.with_suffix("")


def _files(folder: Path, home: Path, kinds: Sequence[str]) -> Iterator[Path]:
    """Pictures in a folder, but for those that were written here."""
    seen: dict[Path, Path] = {}
    for path in _entries(folder, home.resolve()):
        if not path.name.lower().endswith(tuple(kinds)):
            continue
        stat_file(path)
        relative = path.relative_to(folder).as_posix()
        if relative != relative.encode(errors="replace").decode():
            raise DataError(f"{folder}: {relative!r} in it has a name that is no text; rename it")
        bare = _bare(path)
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
        if Path(place).resolve() == written or "predictions.csv" in files:
            folders.clear()  # what was predicted before is no picture; nor is it gone on within it
            continue
        for path in (Path(place, name) for name in folders):
            if path.is_symlink() and path.resolve() != written:
                raise DataError(
                    f"{path}: a link to a folder, which is not followed; put the folder itself "
                    "there, or take the link away"
                )
        entries += [Path(place, name) for name in (*folders, *files)]
    return sorted(entries)


def note_on_other_files(folder: Path, home: Path, rule: Rule | None) -> str | None:
    """A note on the files in a folder that are not of the kinds that are read, if there are any."""
    kinds = SUFFIXES if rule is None else KINDS
    unread = [
        path.relative_to(folder).as_posix()
        for path in _entries(folder, home.resolve())
        if not path.name.lower().endswith(kinds) and not path.is_dir()
    ]
    return f"{folder}: {_named(unread)}" if unread else None


def _named(unread: Sequence[str]) -> str:
    files = "1 file" if len(unread) == 1 else f"{len(unread)} files"
    more = ", ..." if len(unread) > _NAMED else ""
    return f"{files} of other kinds not read: {', '.join(map(repr, unread[:_NAMED]))}{more}"


def _refuse(error: OSError) -> None:
    raise DataError(f"{error.filename}: cannot be read ({error.strerror})")
