"""Files of data sets: where they lie, and what is wrong with one that cannot be used."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from znorm.lab.errors import DataError

__all__ = ["data_root", "read_bytes", "read_picture", "refuse_page"]

Pixels = npt.NDArray[np.uint8]


def data_root() -> Path:
    """``$ZNORM_DATA_DIR``, else ``~/.cache/znorm/data``."""
    given = os.environ.get("ZNORM_DATA_DIR")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "znorm" / "data"


def refuse_page(path: Path, start: bytes) -> None:
    """Raise if a file starts as a web page does: a download link that answered with one."""
    head = start[:512].lstrip().lower()
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise DataError(
            f"{path}: expected a data file, found a web page; download it again, "
            "or by hand from the address that znorm data list names"
        )


def read_bytes(path: Path, expected: str, size: int | None = None) -> bytes:
    """A whole file.

    Raises
    ------
    DataError
        If it cannot be read, is a web page, or is not of ``size`` bytes.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    refuse_page(path, content)
    if size is not None and len(content) != size:
        raise DataError(
            f"{path}: expected {expected} of {size} bytes, found {len(content)}; "
            "it is cut off or not that file"
        )
    return content


def read_picture(path: Path, mode: str, size: Iterable[int] | None = None) -> Pixels:
    """The pixels of a picture: (H, W) for mode "L", (H, W, 3) for "RGB".

    Raises
    ------
    DataError
        If it cannot be decoded, or has another mode or size.
    """
    try:
        with Image.open(path) as picture:
            found = picture.mode
            pixels = np.asarray(picture, dtype=np.uint8)
    except FileNotFoundError:
        raise DataError(f"{path}: missing") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        with suppress(OSError):
            refuse_page(path, path.read_bytes()[:512])
        reason = " ".join(str(error).split())
        raise DataError(
            f"{path}: expected a picture, found what cannot be decoded ({reason})"
        ) from None
    if found != mode:
        raise DataError(f"{path}: expected a picture of mode {mode}, found {found}")
    if size is not None and pixels.shape[:2] != tuple(size):
        wanted = "x".join(map(str, size))
        raise DataError(
            f"{path}: expected {wanted} pixels, found {pixels.shape[0]}x{pixels.shape[1]}"
        )
    return pixels
