"""The numbers of runs in one file: the same bytes each time, and unpacked with care."""

from __future__ import annotations

import hashlib
import io
import json
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import znorm
from znorm.lab.errors import DataError
from znorm.lab.runs.files import read_file, write_atomically
from znorm.lab.runs.survey import Damaged, survey

__all__ = ["LEFT_OUT", "PACKED", "Packed", "pack", "read_pack", "unpack"]

PACKED = (
    "specifications, scores of each epoch and of the end, counts of each test case with its name "
    "and patient, versions of packages, the question, the trials, the counts of images, the floor"
)
LEFT_OUT = (
    "weights, checkpoints, pictures, predictions, the command that was typed, notes of the runs"
)

_MANIFEST = "manifest.json"
_ABOUT = "znorm numbers of runs"
_FORMAT = 1
_OF_A_RUN = ("spec.json", "result.json", "events.jsonl", "env.json", "cases.csv")
_OF_A_FOLDER = ("question.json", "tuning.json", "reproduction.json")
_OF_A_TASK = (
    "data__????????.json",
    "colour_statistics__????????/result.json",
    "threshold__????????/result.json",
)
# What a packed file may be called: nothing else is unpacked.
_NAME = re.compile(
    r"(?:question|tuning|reproduction)\.json"
    r"|[^/]+/data__[0-9a-f]{8}\.json"
    r"|[^/]+/(?:colour_statistics|threshold)__[0-9a-f]{8}/result\.json"
    r"|(?:[^/]+/)*seed-\d+/(?:spec\.json|result\.json|events\.jsonl|env\.json|cases\.csv)"
)
# Of a real comparison a file has a few MB; what is beyond these was made to fill a disk.
_MOST_FILES = 200_000
_LARGEST = 1 << 30  # bytes, of all files together
_LARGEST_PACK = 1 << 29
# Of every file, so that the same content has the same bytes: the first that the format knows.
_DATE = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Packed:
    """The files of an export.

    Parameters
    ----------
    files : dict of str to bytes
        By their place below the folder of runs.
    changed : tuple of str
        Those that are not what was packed, by the digests beside them.
    version : str
        Of the znorm that packed them.
    """

    files: dict[str, bytes]
    changed: tuple[str, ...] = ()
    version: str = znorm.__version__


def pack(root: Path) -> tuple[bytes, list[Damaged]]:
    """All numbers of the runs below ``root`` as a zip file, and the folders that cannot be read.

    Raises
    ------
    DataError
        If there are no runs.
    """
    runs, damaged = survey(root)
    if not runs:
        raise DataError(f"{root}: no runs in it that can be read; znorm compare makes some")
    files: dict[str, bytes] = {}
    for path in _paths(root, [run.folder for run in runs]):
        try:
            content = read_file(path, _LARGEST)
        except FileNotFoundError:
            continue
        files[path.relative_to(root).as_posix()] = _without_paths(path, content)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    manifest = {
        "about": _ABOUT,
        "format": _FORMAT,
        "znorm": znorm.__version__,
        "holds": PACKED,
        "left_out": LEFT_OUT,
        "files": digests,
    }
    text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in sorted({_MANIFEST: text.encode(), **files}.items()):
            entry = zipfile.ZipInfo(name, _DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3  # as on any other system
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            archive.writestr(entry, content, compresslevel=9)
    return buffer.getvalue(), damaged


def _paths(root: Path, runs: Sequence[Path]) -> Iterator[Path]:
    for folder in runs:
        yield from (folder / name for name in _OF_A_RUN)
    yield from (root / name for name in _OF_A_FOLDER)
    for folder in sorted({root / path.relative_to(root).parts[0] for path in runs}):
        for pattern in _OF_A_TASK:
            yield from sorted(folder.glob(pattern))


def _without_paths(path: Path, content: bytes) -> bytes:
    """A file without what says where things lay on the machine, as far as no number needs it.

    The specification of a user's own images names their folder, and its hash is made with it.
    """
    if path.name == "events.jsonl":
        lines = content.splitlines(keepends=True)
        return b"".join(line for line in lines if _is_of_an_epoch(line))
    if path.name == "spec.json":
        return _without(content, ("start",))
    if path.name == "env.json" or path.parent.name.startswith(("colour_statistics__", "threshold")):
        return _without(content, ("command", "data"))
    return content


def _without(content: bytes, keys: Sequence[str]) -> bytes:
    try:
        loaded: Any = json.loads(content)
    except (ValueError, RecursionError):
        return content  # whoever reads it says so
    if not isinstance(loaded, dict) or not any(key in loaded for key in keys):
        return content
    kept = {key: value for key, value in loaded.items() if key not in keys}
    return (json.dumps(kept, indent=2, sort_keys=True) + "\n").encode()


def _is_of_an_epoch(line: bytes) -> bool:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(event, dict) and event.get("event") == "epoch"


def read_pack(path: Path) -> Packed:
    """The files of what :func:`pack` made, wherever it came from.

    Raises
    ------
    DataError
        For what is no such file, or was made to do harm.
    """
    try:
        content = read_file(path, _LARGEST_PACK)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    return opened(content, str(path))


def opened(content: bytes, name: str) -> Packed:
    """As :func:`read_pack`, of its bytes; ``name`` is the file's in messages."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            _check(entries, name)
            files = {entry.filename: archive.read(entry) for entry in entries}
    except DataError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"{name}: not a whole zip file ({reason}); export the runs again") from None
    except (RuntimeError, NotImplementedError):
        raise DataError(f"{name}: is encrypted or packed in another way; export it again") from None
    return _checked(files, name)


def _check(entries: Sequence[zipfile.ZipInfo], name: str) -> None:
    """Refuse what could be written elsewhere, or fill the memory, before anything is unpacked."""
    names = [entry.filename for entry in entries]
    if _MANIFEST not in names:
        raise DataError(f"{name}: no {_MANIFEST} in it: not what znorm report --export makes")
    if len(entries) > _MOST_FILES or sum(entry.file_size for entry in entries) > _LARGEST:
        raise DataError(f"{name}: would unpack to more than runs ever hold; it was not unpacked")
    for entry in entries:
        within = all(part not in ("", ".", "..") for part in entry.filename.split("/"))
        known = entry.filename == _MANIFEST or _NAME.fullmatch(entry.filename)
        plain = stat.S_IFMT(entry.external_attr >> 16) in (0, stat.S_IFREG)
        if not (within and known and plain) or "\\" in entry.filename:
            raise DataError(
                f"{name}: holds {entry.filename!r}, which no export does; it was not unpacked"
            )
    if len(set(names)) < len(names):
        raise DataError(f"{name}: holds a file twice; it was not unpacked")


def _checked(files: dict[str, bytes], name: str) -> Packed:
    try:
        manifest: Any = json.loads(files.pop(_MANIFEST))
        digests = manifest["files"]
        known = manifest["about"] == _ABOUT and manifest["format"] == _FORMAT
        version = str(manifest["znorm"])
    except (ValueError, TypeError, KeyError, RecursionError):
        known = False
    if not known or not isinstance(digests, dict):
        raise DataError(f"{name}: {_MANIFEST} is not that of an export by this version of znorm")
    for place in sorted({*digests, *files}):
        if place.rpartition("/")[2] == "spec.json" and place not in files:
            raise DataError(f"{name}: {place} is missing; export the runs again")
    for folder in sorted({place.rpartition("/")[0] for place in files if "/seed-" in place}):
        if f"{folder}/spec.json" not in files:
            raise DataError(f"{name}: {folder}/spec.json is missing; export the runs again")
    changed = [
        place
        for place in sorted({*digests, *files})
        if place not in files or hashlib.sha256(files[place]).hexdigest() != digests.get(place)
    ]
    return Packed(files, tuple(changed), version)


def unpack(packed: Packed, root: Path) -> None:
    """Write the files of an export below ``root``."""
    for place, content in packed.files.items():
        write_atomically(root / place, content)
