"""Files of a folder of runs: written whole or not at all, and read as if anybody had sent them."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from znorm.lab import csvfiles
from znorm.lab.errors import DataError, DiskFullError, LabError, is_disk_full

__all__ = [
    "cannot_write",
    "check_within",
    "read_file",
    "read_json",
    "sealed",
    "unsealed",
    "write_atomically",
    "write_table",
]

_SEAL = b"\nznorm sha256 "


def write_atomically(path: Path, content: bytes) -> None:
    """Put ``content`` at ``path`` whole or not at all, even if the machine stops meanwhile.

    Raises
    ------
    DiskFullError
        If no space is left; what stood at ``path`` still stands.
    DataError
        If it cannot be written for another reason.
    """
    # Of this process alone: two that write the same file must not share a half-written one.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Made anew: a link that lies there would be written through.
        temporary.unlink(missing_ok=True)
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise cannot_write(path, error) from error
        raise


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Put rows with the same keys at ``path`` as csv; errors as :func:`write_atomically`."""
    write_atomically(path, csvfiles.dump(rows))


def cannot_write(path: Path, error: OSError) -> LabError:
    """The error for a file that the system refuses to write."""
    if is_disk_full(error):
        return DiskFullError(
            f"{path}: no space left on the disk; free some and give the same command again"
        )
    return DataError(f"{path}: cannot be written ({error.strerror or error})")


def read_file(path: Path, most: int = 1 << 26) -> bytes:
    """Read a plain file of ``most`` bytes or fewer.

    Raises
    ------
    FileNotFoundError
    DataError
        For a link, a folder, a pipe, what is larger or cannot be read.
    """
    try:
        entry = path.lstat()
        if not stat.S_ISREG(entry.st_mode):
            kind = "a link" if stat.S_ISLNK(entry.st_mode) else "no plain file"
            raise DataError(f"{path}: expected a file, found {kind}; move it away")
        if entry.st_size > most:
            raise DataError(
                f"{path}: {entry.st_size:,} bytes are more than such a file has; move it away"
            )
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None


def read_json(path: Path, most: int = 1 << 24) -> Any:
    """Read a JSON file; errors as :func:`read_file`, and a DataError for what is no JSON."""
    try:
        return json.loads(read_file(path, most))
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"{path}: not JSON ({reason}); move its folder away") from None


def check_within(root: Path, path: Path) -> None:
    """Raise if ``path`` lies below ``root`` by its name, and elsewhere by a link on the way.

    Raises
    ------
    DataError
    """
    if not path.parent.resolve().is_relative_to(root.resolve()):
        raise DataError(f"{path}: a link leads out of {root}; take it away")


def sealed(content: bytes) -> bytes:
    """Add a checksum of the content at its end: what lacks it is not whole."""
    return content + _SEAL + hashlib.sha256(content).hexdigest().encode()


def unsealed(content: bytes, path: Path) -> bytes:
    """Take away what :func:`sealed` added.

    Raises
    ------
    DataError
        If the checksum is not there, or not that of the content.
    """
    end = len(_SEAL) + 64
    body, seal = content[:-end], content[-end:]
    if not seal.startswith(_SEAL):
        raise DataError(f"{path}: damaged: it lacks the checksum at its end")
    if hashlib.sha256(body).hexdigest().encode() != seal[len(_SEAL) :]:
        raise DataError(f"{path}: damaged: it is not what was written")
    return body
