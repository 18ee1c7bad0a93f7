"""Files of data sets: where they lie, and what is wrong with one that cannot be used."""

from __future__ import annotations

import codecs
import os
import stat
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from znorm.lab.errors import ConfigurationError, DataError

__all__ = [
    "data_root",
    "inside",
    "listing",
    "marked",
    "open_picture",
    "read_bytes",
    "read_mask",
    "read_picture",
    "read_start",
    "refuse_page",
    "several_pages",
    "stat_file",
    "user_cache",
]

Pixels = npt.NDArray[np.uint8]

# Bytes of a name on the file systems in use.
LONGEST_NAME = 255
# Of what Pillow knows, those that are read: for some others, such as EPS, it starts a program.
_FORMATS = ("PNG", "TIFF", "JPEG", "BMP")
_KINDS = "png, tif, jpg and bmp are read"
# What Pillow warns of and goes on: a picture too large to be one, and one whose tags are cut off,
# so that nobody knows which way up it is.
_DAMAGE = ("Image size", "Corrupt EXIF", "Truncated File Read")


def data_root() -> Path:
    """``$ZNORM_DATA_DIR``, else ``~/.cache/znorm/data``.

    Raises
    ------
    ConfigurationError
        If neither is known.
    """
    named = os.environ.get("ZNORM_DATA_DIR")
    if not named:
        return user_cache() / "data"
    try:
        return Path(named).expanduser()
    except RuntimeError:
        raise ConfigurationError(
            f"ZNORM_DATA_DIR: {named!r} begins with the home folder of a user who is not known "
            "here; set ZNORM_DATA_DIR to the whole path of a folder"
        ) from None


def user_cache() -> Path:
    """``~/.cache/znorm``.

    Raises
    ------
    ConfigurationError
        If the user has no home folder.
    """
    try:
        return Path.home() / ".cache" / "znorm"
    except RuntimeError:
        raise ConfigurationError(
            "this user has no home folder; set ZNORM_DATA_DIR to a folder for data sets"
        ) from None


def refuse_page(path: Path, start: bytes) -> None:
    """Raise if a file starts as a web page does: a download link that answered with one."""
    if _is_page(start):
        raise DataError(
            f"{path}: expected a data file, found a web page; download it again, "
            "or by hand from the address that znorm data list names"
        )


def _is_page(start: bytes) -> bool:
    head = start[:512].removeprefix(codecs.BOM_UTF8).lstrip().lower()
    return head.startswith((b"<!doctype", b"<html", b"<?xml"))


def listing(folder: Path) -> list[str]:
    """The names of what is in a folder, in order.

    Raises
    ------
    DataError
        If it cannot be read.
    """
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise _unreadable(folder, error) from None


def stat_file(path: Path) -> os.stat_result:
    """The entry of a file, or of the one that a link leads to.

    Raises
    ------
    DataError
        If there is none, or if it is a folder or something else that holds no data.
    """
    try:
        entry = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from None
    if not stat.S_ISREG(entry.st_mode):
        kind = "a folder" if stat.S_ISDIR(entry.st_mode) else "a pipe or a device"
        raise DataError(f"{path}: expected a file, found {kind}; move it away")
    return entry


def _unreadable(path: Path, error: OSError) -> DataError:
    if isinstance(error, FileNotFoundError) and path.is_symlink():
        return DataError(
            f"{path}: a link to {os.readlink(path)}, which is not there; put the file itself here"
        )
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path}: missing")
    return DataError(f"{path}: cannot be read ({error.strerror or error})")


def inside(folder: Path, name: str) -> Path:
    """A file of a folder, by a name that was read from another file.

    Raises
    ------
    DataError
        If no file can have that name; if the name, or a link of that name, leads out of the folder.
    """
    if not name or "\0" in name:
        raise DataError(f"{folder}: {name[:60]!r} is no name of a file")
    longest = max(len(single.encode(errors="replace")) for single in name.split("/"))
    if longest > LONGEST_NAME:
        raise DataError(
            f"{folder}: {name[:60]!r}... is a name of {longest} bytes; files have {LONGEST_NAME} "
            "at most"
        )
    path = folder / name
    # The common case is quick: a plain entry of the folder cannot be elsewhere.
    if path.name != name or name == ".." or os.path.islink(path):
        real = Path(os.path.realpath(path))
        if Path(os.path.realpath(folder)) not in real.parents:
            raise DataError(
                f"{folder}: {name[:60]!r} leads out of it, to {real}; put the file itself there"
            )
    return path


def read_bytes(path: Path, expected: str, size: int | None = None) -> bytes:
    """A whole file.

    Raises
    ------
    DataError
        If it cannot be read, is a web page, or is not of ``size`` bytes.
    """
    stat_file(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from None
    refuse_page(path, content)
    if size is not None and len(content) != size:
        raise DataError(
            f"{path}: expected {expected} of {size} bytes, found {len(content)}; "
            "it is cut off or not that file"
        )
    return content


def read_start(path: Path) -> bytes:
    """The first 512 bytes of a file, which tell a web page.

    Raises
    ------
    DataError
        If it cannot be read.
    """
    stat_file(path)
    try:
        with open(path, "rb") as file:
            return file.read(512)
    except OSError as error:
        raise _unreadable(path, error) from None


def read_picture(
    path: Path, mode: str, size: Iterable[int] | None = None, *, of_user: bool = False
) -> Pixels:
    """The pixels of a picture: (H, W) for mode "L", (H, W, 3) for "RGB".

    Turned as its EXIF orientation says. ``of_user``: it is a picture of the user's, not of a set
    that could be downloaded again.

    Raises
    ------
    DataError
        If it cannot be decoded, has several pages, or has another mode or size.
    """
    picture = _decoded(path, of_user=of_user)
    if picture.mode != mode:
        raise DataError(f"{path}: expected a picture of mode {mode}, found {picture.mode}")
    return _of_size(path, np.asarray(picture, dtype=np.uint8), size)


def read_mask(path: Path, size: Iterable[int] | None = None, *, of_user: bool = False) -> Pixels:
    """A mask, 1 where it marks something and 0 elsewhere: (H, W).

    Of one bit a pixel (mode "1"), grey ("L") or of a palette ("P"); black, and white or 1.
    ``of_user`` as :func:`read_picture` takes it.

    Raises
    ------
    DataError
        If it cannot be decoded, has several pages or another mode or size, or holds other values,
        as one that was stored with loss does.
    """
    picture = _decoded(path, of_user=of_user)
    if picture.mode not in ("1", "L", "P"):
        raise DataError(
            f"{path}: expected a mask of mode 1, L or P, found {picture.mode}; save it in grey"
        )
    pixels = np.asarray(_grey(path, picture) if picture.mode == "P" else picture, dtype=np.uint8)
    return _of_size(path, marked(path, pixels), size)


def marked(path: Path, pixels: npt.NDArray[Any]) -> Pixels:
    """A mask of whatever numbers: 1 where it marks something and 0 elsewhere.

    Raises
    ------
    DataError
        If it has other values than 0 and 255, or 0 and 1; it names ``path``.
    """
    values = np.unique(pixels).tolist()
    if not (set(values) <= {0, 255} or set(values) <= {0, 1}):
        more = f" and {len(values) - 5} more values" if len(values) > 5 else ""
        raise DataError(
            f"{path}: expected a mask of 0 and 255, or of 0 and 1, found {values[:5]}{more}; "
            "save it with two values, as png or another kind without loss"
        )
    return (pixels > 0).astype(np.uint8)


def _grey(path: Path, picture: Image.Image) -> Pixels:
    """The pixels of a picture with a palette that has greys alone."""
    # What is transparent has a colour too, and Pillow warns of what it cannot keep.
    picture.info.pop("transparency", None)
    colours = np.asarray(picture.convert("RGB"))
    if (colours != colours[..., :1]).any():
        raise DataError(
            f"{path}: expected a mask of black and white, found a palette of other colours; "
            "save it in grey"
        )
    return colours[..., 0]


def _of_size(path: Path, pixels: Pixels, size: Iterable[int] | None) -> Pixels:
    if size is not None and pixels.shape[:2] != tuple(size):
        wanted = "x".join(map(str, size))
        raise DataError(
            f"{path}: expected {wanted} pixels, found {pixels.shape[0]}x{pixels.shape[1]}"
        )
    return pixels


def _decoded(path: Path, *, of_user: bool) -> Image.Image:
    """The one page of a picture, turned as its EXIF orientation says."""
    with open_picture(path, of_user=of_user) as picture:
        pages = getattr(picture, "n_frames", 1)
        ImageOps.exif_transpose(picture, in_place=True)
    if picture.format == "BMP":
        _check_bits(path, picture.mode)
    if pages > 1:
        raise several_pages(path, pages)
    return picture


def several_pages(path: Path, pages: int) -> DataError:
    """The error for a picture of more than one page."""
    return DataError(
        f"{path}: expected a picture of one page, found {pages}; save each in a file of its own"
    )


@contextmanager
def open_picture(path: Path, *, of_user: bool) -> Iterator[Image.Image]:
    """A picture, of which the header is read; within it the pixels may be asked for.

    ``of_user`` as :func:`read_picture` takes it.

    Raises
    ------
    DataError
        If it cannot be decoded, then or within.
    """
    if not stat_file(path).st_size:
        raise DataError(f"{path}: expected a picture, found an empty file; copy it here again")
    try:
        with warnings.catch_warnings():
            for message in _DAMAGE:
                warnings.filterwarnings("error", message)
            with Image.open(path, formats=_FORMATS) as picture:
                yield picture
    except DataError:
        raise
    except Exception as error:
        # A damaged file fails in many ways in the decoders of many formats; all mean the same.
        raise _no_picture(path, error, of_user=of_user) from None


def _check_bits(path: Path, mode: str) -> None:
    """Raise for a bmp with bytes for pixels and a palette of two: Pillow reads it bit by bit."""
    start = read_start(path)
    place = 24 if start[14] == 12 else 28  # of the short header that OS/2 has, and of others
    bits = int.from_bytes(start[place : place + 2], "little")
    if bits != {"1": 1, "L": 8}.get(mode, bits):
        raise DataError(
            f"{path}: a bmp of {bits} bits a pixel with a palette of black and white is not "
            "decoded right; save it as png"
        )


def _no_picture(path: Path, error: Exception, *, of_user: bool) -> DataError:
    if isinstance(error, OSError) and error.errno is not None:
        return _unreadable(path, error)
    start = read_start(path)
    if of_user and _is_page(start):
        return DataError(
            f"{path}: expected a picture, found a web page or other marked up text, such as SVG; "
            f"{_KINDS}"
        )
    refuse_page(path, start)
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        reason = f"its content is of no known format; {_KINDS}"
    return DataError(f"{path}: expected a picture, found what cannot be decoded ({reason})")
