"""Pictures decoded once into a file of plain pixels, which is then read or mapped.

Decoding thousands of small compressed files is what makes a set slow to open. The decoded file
is named by a fingerprint of its sources, so that it is never stale.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from znorm.lab.datasets.files import data_root, stat_file
from znorm.lab.errors import DataError, DiskFullError, is_disk_full

__all__ = ["IN_MEMORY", "Pixels", "decoded", "fits_in_memory"]

# Bytes up to which a set is read into memory at once; a larger one is mapped.
IN_MEMORY = 2 << 30

# Of what is read as a picture or a mask: what was decoded by others is decoded anew.
_RULES = 2

Pixels = npt.NDArray[np.uint8]


def fits_in_memory(shape: tuple[int, ...]) -> bool:
    """Whether uint8 pixels of this shape are read at once."""
    return math.prod(shape) <= IN_MEMORY


def decoded(
    name: str, sources: Iterable[Path], shape: tuple[int, ...], fill: Callable[[Pixels], None]
) -> Tensor:
    """The pixels of a set, decoded when first asked for.

    Parameters
    ----------
    name : str
        Of the set and part.
    sources : iterable of Path
        The files that the pixels come from: where one of them changes, they are decoded anew.
    shape : tuple of int
    fill : callable
        Writes all pixels into the array it is given, of that shape.

    Returns
    -------
    Tensor of ``shape``, uint8
        In memory up to :data:`IN_MEMORY` bytes, mapped from the file above.

    Raises
    ------
    DataError
        What ``fill`` raises for files that are wrong; nothing half-written is left.
    DiskFullError
        If the decoded file does not fit on the disk.
    """
    path = _folder() / f"{name}-{_fingerprint(sources, shape)}.u8"
    size = math.prod(shape)
    if not path.exists() or path.stat().st_size != size:
        _write(path, name, shape, fill)
    if fits_in_memory(shape):
        return torch.from_numpy(np.fromfile(path, dtype=np.uint8)).view(shape)
    return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8).view(shape)


def _write(path: Path, name: str, shape: tuple[int, ...], fill: Callable[[Pixels], None]) -> None:
    handle, temporary = tempfile.mkstemp(prefix=f".{name}-", dir=path.parent)
    try:
        size = math.prod(shape)
        # Reserved at once: a full disk is an error here, not a crash in the mapping.
        if size and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle, 0, size)
        else:
            os.truncate(handle, size)
        if size:
            pixels: Pixels = np.memmap(temporary, dtype=np.uint8, mode="r+", shape=shape)
            fill(pixels)
            del pixels
        os.fsync(handle)
        os.replace(temporary, path)
    except OSError as error:
        if is_disk_full(error):
            raise DiskFullError(
                f"{path}: {math.prod(shape) / 1e9:.1f} GB are needed for decoded images; "
                "free some space, or set ZNORM_DATA_DIR to a larger disk"
            ) from error
        raise
    finally:
        os.close(handle)
        Path(temporary).unlink(missing_ok=True)
    for stale in path.parent.glob(f"{name}-????????????.u8"):
        if stale != path:
            stale.unlink(missing_ok=True)


def _folder() -> Path:
    """Beside the data, or in the user's cache where the data may only be read."""
    beside = data_root() / ".decoded"
    for folder in (beside, Path.home() / ".cache" / "znorm" / "decoded"):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    raise DataError(f"{beside}: cannot be written; decoded images go there")


def _fingerprint(sources: Iterable[Path], shape: tuple[int, ...]) -> str:
    digest = hashlib.sha256(f"{_RULES} {shape}".encode())
    for path in sources:
        entry = stat_file(path)
        digest.update(f"{path} {entry.st_size} {entry.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:12]
