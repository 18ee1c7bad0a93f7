"""Pictures decoded once into a file of plain pixels, which is then read or mapped.

Decoding thousands of small compressed files is what makes a set slow to open. The decoded file
is named by a fingerprint of the names, sizes and times of its sources, so that it is decoded anew
where one of them changes. After the pixels it holds their sha256.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from znorm.lab.datasets.files import data_root, stat_file, user_cache
from znorm.lab.errors import ConfigurationError, DataError, DiskFullError, is_disk_full

__all__ = ["IN_MEMORY", "Pixels", "anew", "decoded", "fits_in_memory"]

# Bytes up to which a set is read into memory at once; a larger one is mapped.
IN_MEMORY = 2 << 30

# Of what is read as a picture or a mask: what was decoded by others is decoded anew.
_RULES = 2
# Bytes of the sha256 after the pixels.
_DIGEST = 32

# Where everything is decoded anew: the names of what was there and turned out to be wrong.
_wrong: ContextVar[list[str] | None] = ContextVar("wrong", default=None)

Pixels = npt.NDArray[np.uint8]


def fits_in_memory(shape: tuple[int, ...]) -> bool:
    """Tell whether uint8 pixels of this shape are read at once."""
    return math.prod(shape) <= IN_MEMORY


@contextmanager
def anew() -> Iterator[list[str]]:
    """While entered, sources are decoded whatever is there of them from before.

    Yields the names of decoded files that were not what their sources say, which are then right.
    """
    wrong: list[str] = []
    token = _wrong.set(wrong)
    try:
        yield wrong
    finally:
        _wrong.reset(token)


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
    wrong = _wrong.get()
    before = None
    if wrong is not None:
        before = _pixels_in(path, shape)
        # What cannot be decoded now must not be had from before either.
        path.unlink(missing_ok=True)
    pixels = _read(path, shape)
    if pixels is None:
        _write(path, name, shape, fill)
        pixels = _read(path, shape)
    if pixels is None:
        raise DataError(f"{path}: holds other pixels than were written to it; check the disk")
    if wrong is not None and before is not None and not before.equal(pixels):
        wrong.append(path.name)
    return pixels


def _read(path: Path, shape: tuple[int, ...]) -> Tensor | None:
    """The pixels in a decoded file, or None if it is not there or not whole.

    Each load looks at all of them, of a mapped file too: bytes that change on a disk change a
    result without a word. That is one pass of 1 to 2 GB a second, as the fingerprint of the set.
    """
    pixels = _pixels_in(path, shape)
    if pixels is None:
        return None
    with open(path, "rb") as file:
        file.seek(pixels.numel())
        digest = file.read()
    return pixels if hashlib.sha256(pixels.view(-1).numpy().data).digest() == digest else None


def _pixels_in(path: Path, shape: tuple[int, ...]) -> Tensor | None:
    """The pixels in a decoded file as they are, or None if there is none of that size."""
    size = math.prod(shape)
    if not path.exists() or path.stat().st_size != size + _DIGEST:
        return None
    if fits_in_memory(shape):
        return torch.from_numpy(np.fromfile(path, dtype=np.uint8, count=size)).view(shape)
    return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8).view(shape)


def _write(path: Path, name: str, shape: tuple[int, ...], fill: Callable[[Pixels], None]) -> None:
    handle, temporary = tempfile.mkstemp(prefix=f".{name}-", dir=path.parent)
    try:
        size = math.prod(shape)
        # Reserved at once: a full disk is an error here, not a crash in the mapping.
        if size and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle, 0, size + _DIGEST)
        else:
            os.truncate(handle, size + _DIGEST)
        digest = hashlib.sha256()
        if size:
            pixels: Pixels = np.memmap(temporary, dtype=np.uint8, mode="r+", shape=shape)
            fill(pixels)
            digest.update(pixels.reshape(-1).data)
            del pixels
        os.lseek(handle, size, os.SEEK_SET)
        os.write(handle, digest.digest())
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
    with_data = data_root() / ".decoded"
    if _can_hold(with_data):
        return with_data
    try:
        in_cache = user_cache() / "decoded"
    except ConfigurationError:
        in_cache = with_data  # no home folder, so there is no other place
    if in_cache == with_data or not _can_hold(in_cache):
        raise DataError(f"{with_data}: cannot be written; decoded images go there")
    return in_cache


def _can_hold(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _fingerprint(sources: Iterable[Path], shape: tuple[int, ...]) -> str:
    digest = hashlib.sha256(f"{_RULES} {shape}".encode())
    for path in sources:
        entry = stat_file(path)
        digest.update(f"{path} {entry.st_size} {entry.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:12]
