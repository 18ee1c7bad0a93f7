"""All runs below a folder, and what cannot be read as one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from znorm.lab.errors import DataError
from znorm.lab.runs.files import read_json
from znorm.lab.runs.folder import CHECKPOINTS, Run

__all__ = ["Damaged", "find", "reproductions", "survey"]

# Files by one of which the folder of a run is known, whatever else of it is lost.
_OF_A_RUN = {"spec.json", "result.json", *CHECKPOINTS}


@dataclass(frozen=True)
class Damaged:
    """A folder that a run was in, and why it cannot be read.

    Parameters
    ----------
    folder : Path
    reason : str
        One line, which names the file.
    """

    folder: Path
    reason: str

    status = "unreadable"


def survey(root: str | os.PathLike[str]) -> tuple[list[Run], list[Damaged]]:
    """Every run below ``root``, by folder, and what cannot be read as one.

    Raises
    ------
    DataError
        If ``root`` is no folder.
    """
    path = Path(root)
    if not path.is_dir():
        raise DataError(f"{path}: no such folder of runs")
    runs: list[Run] = []
    damaged: list[Damaged] = []

    def unreadable(error: OSError) -> None:
        folder = Path(error.filename)
        damaged.append(Damaged(folder, f"{folder}: cannot be read ({error.strerror})"))

    for kind, folder in _walk(path, unreadable):
        if kind == "link":
            damaged.append(Damaged(folder, f"{folder}: a link, which is not followed"))
        if kind == "run":
            try:
                run = Run.open(folder)
                run.check_records()
                runs.append(run)
            except DataError as error:
                damaged.append(Damaged(folder, str(error)))
    runs.sort(key=lambda run: run.folder)
    damaged.sort(key=lambda entry: entry.folder)
    return runs, damaged


def find(root: str | os.PathLike[str]) -> list[Run]:
    """Every run below ``root`` that can be read, by folder; :func:`survey` tells of the others.

    Raises
    ------
    DataError
        If ``root`` is no folder.
    """
    return survey(root)[0]


def reproductions(root: str | os.PathLike[str]) -> list[Path]:
    """The folders below ``root`` that reproduce the paper, with pages and marks of their own."""
    return sorted(folder for kind, folder in _walk(Path(root)) if kind == "reproduction")


def _walk(
    root: Path, onerror: Callable[[OSError], object] | None = None
) -> Iterator[tuple[str, Path]]:
    """Each "run", "reproduction" and "link" to a folder below ``root``; within none of them."""
    for name, folders, files in os.walk(root, onerror=onerror):
        here = Path(name)
        if here != root and _is_reproduction(here, files):
            folders.clear()
            yield "reproduction", here
        elif here.name.startswith("seed-") and _OF_A_RUN & {*folders, *files}:
            folders.clear()
            yield "run", here
        else:
            links = (here / folder for folder in folders)
            yield from (("link", path) for path in links if path.is_symlink())


def _is_reproduction(folder: Path, files: Sequence[str]) -> bool:
    """Tell whether a folder has a record of its own: one that cannot be read hides no runs."""
    if "reproduction.json" not in files:
        return False
    try:
        return isinstance(read_json(folder / "reproduction.json"), dict)
    except (DataError, FileNotFoundError):
        return False
