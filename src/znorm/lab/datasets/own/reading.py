"""One file of the user's as an array: pictures by Pillow, volumes and DICOM by MONAI's readers."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import ImageOps

from znorm.lab.datasets.files import open_picture, read_start, several_pages, stat_file
from znorm.lab.errors import ConfigurationError, DataError

__all__ = [
    "DICOM",
    "KINDS",
    "VOLUMES",
    "Facts",
    "facts_of",
    "kind_of",
    "mask_pixels",
    "read_slice",
    "volume_of",
]

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
VOLUMES = (".nii", ".nii.gz")
DICOM = (".dcm", ".dicom")
KINDS = (*PICTURES, ".npy", *VOLUMES, *DICOM)

# Of Pillow's modes: channels, and the type of a value.
_MODES = {
    "1": (1, "uint8"),
    "L": (1, "uint8"),
    "LA": (1, "uint8"),
    "P": (3, "uint8"),
    "PA": (3, "uint8"),
    "RGB": (3, "uint8"),
    "RGBA": (3, "uint8"),
    "I;16": (1, "uint16"),
    "I;16B": (1, "uint16"),
    "I;16L": (1, "uint16"),
    "I": (1, "int32"),
    "F": (1, "float32"),
}


# Of the units that a volume can name; without one they are millimetres.
_MILLIMETRES = {"meter": 1e3, "micron": 1e-3}


class Facts(NamedTuple):
    """The form of a file's images.

    Parameters
    ----------
    height, width, channels, slices : int
    kind : str
        Of numpy: "uint8", "int16", "float64".
    spacing : tuple of float or None
        Millimetres from row to row and from column to column.
    patient : str or None
        As a DICOM file names them.
    window : tuple of float or None
        The lowest and the highest value that a DICOM file asks to be shown.
    axes : str or None
        The directions of a volume's axes in the patient, as "RAS".
    """

    height: int
    width: int
    channels: int
    slices: int
    kind: str
    spacing: tuple[float, float] | None = None
    patient: str | None = None
    window: tuple[float, float] | None = None
    axes: str | None = None


def kind_of(path: Path) -> str | None:
    """The ending by which a file is read; None for one that is not."""
    name = path.name.lower()
    return next((ending for ending in KINDS if name.endswith(ending)), None)


def facts_of(path: Path) -> Facts:
    """The form of a file's images, from its header where that tells.

    Raises
    ------
    DataError
        If it cannot be read, or is not one or several grey or colour pictures.
    """
    entry = stat_file(path)
    if not entry.st_size:
        raise DataError(f"{path}: expected an image, found an empty file; copy it here again")
    return _facts(path, (entry.st_mtime_ns, entry.st_size))


# A folder is listed, divided and loaded, each of which asks; once is enough while a file stays.
@lru_cache(maxsize=1 << 17)
def _facts(path: Path, state: tuple[int, int]) -> Facts:
    kind = kind_of(path)
    if kind == ".npy":
        array = _array(path)
        height, width, channels, slices = _shape(path, array.shape)
        return Facts(height, width, channels, slices, str(array.dtype))
    if kind in VOLUMES:
        volume, spacing, axes = _volume(path)
        height, width, slices = volume.shape
        return Facts(height, width, 1, slices, str(volume.dtype), spacing, axes=axes)
    if kind in DICOM:
        return _dicom_facts(path)
    with open_picture(path, of_user=True) as picture:
        pages = getattr(picture, "n_frames", 1)
        if pages > 1:
            raise several_pages(path, pages)
        if picture.mode not in _MODES:
            raise DataError(f"{path}: a picture of mode {picture.mode}; save it in grey or RGB")
        channels, dtype = _MODES[picture.mode]
        if picture.format == "PNG" and channels == 3 and read_start(path)[24] == 16:
            raise DataError(
                f"{path}: 16 bits of a colour are not read whole; save it as npy, or in 8 bits"
            )
        # What a camera has turned is turned back.
        turned = picture.getexif().get(0x0112, 1) >= 5
        width, height = picture.size[::-1] if turned else picture.size
        return Facts(height, width, channels, 1, dtype)


def read_slice(path: Path, number: int = 0) -> npt.NDArray[Any]:
    """One image of a file: (H, W, C) with one channel or three.

    Palettes become colours; alpha is left out, and the colours below it stay.

    Raises
    ------
    DataError
        If it cannot be decoded.
    """
    kind = kind_of(path)
    if kind == ".npy":
        array = _array(path)
        height, width, channels, _ = _shape(path, array.shape)
        return np.array(array).reshape(height, width, channels)
    if kind in VOLUMES:
        return _volume(path)[0][:, :, number, None]
    if kind in DICOM:
        return _dicom_pixels(path)
    with open_picture(path, of_user=True) as picture:
        turned = ImageOps.exif_transpose(picture)
        if turned.mode in ("P", "PA", "RGBA"):
            turned = turned.convert("RGBA").convert("RGB")
        elif turned.mode in ("1", "LA"):
            turned = turned.convert("L")
        pixels = np.asarray(turned)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def mask_pixels(path: Path, number: int = 0) -> npt.NDArray[Any]:
    """One mask of a file: (H, W).

    Of a palette the numbers, unless it is one of greys.

    Raises
    ------
    DataError
        If it cannot be decoded, or has colours.
    """
    if kind_of(path) in PICTURES:
        with open_picture(path, of_user=True) as picture:
            if picture.mode == "P" and not _is_grey(picture.getpalette() or []):
                return np.asarray(ImageOps.exif_transpose(picture))
    pixels = read_slice(path, number)
    if pixels.shape[2] == 3 and (pixels == pixels[..., :1]).all():
        pixels = pixels[..., :1]
    if pixels.shape[2] != 1:
        raise DataError(f"{path}: expected a mask in grey, found colours; save it in grey")
    return pixels[..., 0]


def _is_grey(palette: list[int]) -> bool:
    return palette[0::3] == palette[1::3] == palette[2::3]


def _array(path: Path) -> npt.NDArray[Any]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:
        raise _undecodable(path, error) from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "uif":
        raise DataError(f"{path}: expected an array of numbers, found {array.dtype}")
    return array


def _shape(path: Path, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    if len(shape) == 2:
        return shape[0], shape[1], 1, 1
    if len(shape) == 3 and shape[2] in (1, 3):
        return shape[0], shape[1], shape[2], 1
    raise DataError(
        f"{path}: expected an array of (height, width), or with 1 or 3 channels at the end, found "
        f"shape {shape}"
    )


def _volume(path: Path) -> tuple[npt.NDArray[Any], tuple[float, float], str]:
    """The slices along a volume's last axis, (H, W, slices), millimetres a pixel, and its axes."""
    entry = stat_file(path)
    return _read_volume(path, (entry.st_mtime_ns, entry.st_size))


# A volume is asked for slice by slice.
@lru_cache(maxsize=4)
def _read_volume(
    path: Path, state: tuple[int, int]
) -> tuple[npt.NDArray[Any], tuple[float, float], str]:
    from monai.data.image_reader import (
        NibabelReader,  # seconds to import, and for these files alone
    )

    _needed("nibabel", path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader = NibabelReader()
            array, meta = reader.get_data(reader.read(str(path)))
    except Exception as error:
        raise _undecodable(path, error) from None
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3:
        raise DataError(
            f"{path}: expected a volume of three dimensions, found shape {array.shape}; save each "
            "channel or moment as a volume of its own"
        )
    if array.dtype.kind not in "uif":
        raise DataError(f"{path}: expected a volume of numbers, found {array.dtype}")
    nibabel: Any = import_module("nibabel")
    affine = np.asarray(meta["affine"])
    scale = _MILLIMETRES.get(nibabel.load(path).header.get_xyzt_units()[0], 1.0)
    columns, rows = (scale * float(np.linalg.norm(affine[:3, axis])) for axis in (0, 1))
    axes = "".join(str(one) for one in nibabel.aff2axcodes(affine))
    # The first axis runs along a row.
    return np.ascontiguousarray(array.transpose(1, 0, 2)), (rows, columns), axes


def volume_of(path: Path, slices: Sequence[npt.NDArray[Any]]) -> bytes:
    """A volume in the place of another, as a file: its slices stacked, its affine and units kept.

    Parameters
    ----------
    path : Path
        Of the volume whose place it has.
    slices : sequence of array of shape (H, W)
        As many as that has.

    Returns
    -------
    bytes
        Of a ``.nii.gz`` file; the same each time.
    """
    import gzip

    nibabel: Any = import_module("nibabel")
    # A volume's first axis runs along a row.
    stacked = np.stack([one.T for one in slices], axis=2)
    there = nibabel.load(path)
    header = nibabel.Nifti1Header()
    header.set_data_dtype(stacked.dtype)
    header.set_xyzt_units(*there.header.get_xyzt_units())
    made = nibabel.Nifti1Image(stacked, there.affine, header)
    made.set_qform(there.affine, int(there.header["qform_code"]) or 1)
    made.set_sform(there.affine, int(there.header["sform_code"]) or 1)
    return gzip.compress(made.to_bytes(), mtime=0)


def _header(path: Path) -> Any:
    _needed("pydicom", path)
    import pydicom

    try:
        return pydicom.dcmread(path, stop_before_pixels=True)
    except Exception as error:
        raise _undecodable(path, error) from None


def _dicom_facts(path: Path) -> Facts:
    header = _header(path)
    try:
        frames = int(_given(header, "NumberOfFrames") or 1)
        channels = int(header.SamplesPerPixel)
        bits, signed = int(header.BitsAllocated), int(header.PixelRepresentation)
        height, width = int(header.Rows), int(header.Columns)
        spacing = _given(header, "PixelSpacing")
        window = None
        asked = (_given(header, "WindowCenter"), _given(header, "WindowWidth"))
        if None not in asked:
            center, wide = (
                float(value[0] if hasattr(value, "append") else value) for value in asked
            )
            window = (center - wide / 2, center + wide / 2)
        if (turned := _turned(header)) is not None and window is not None:
            window = (turned - window[1], turned - window[0])
        patient = str(getattr(header, "PatientID", "")) or None
    except Exception as error:
        raise _undecodable(path, error) from None
    if frames > 1:
        raise DataError(f"{path}: expected one image, found {frames} frames; save each by itself")
    if channels not in (1, 3):
        raise DataError(f"{path}: expected 1 or 3 channels, found {channels}")
    if str(_given(header, "PhotometricInterpretation")) == "PALETTE COLOR":
        raise DataError(f"{path}: a palette of colours is not read; save it in grey or RGB")
    rescaled = any(
        _given(header, name) is not None for name in ("RescaleSlope", "RescaleIntercept")
    )
    kind = "float64" if rescaled else f"{'' if signed else 'u'}int{bits}"
    of_pixel = None if spacing is None else (float(spacing[0]), float(spacing[1]))
    if of_pixel is not None and not min(of_pixel) > 0:
        of_pixel = None  # a size that is none tells nothing
    return Facts(height, width, channels, 1, kind, of_pixel, patient, window)


def _dicom_pixels(path: Path) -> npt.NDArray[Any]:
    from monai.data.image_reader import PydicomReader

    _needed("pydicom", path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader = PydicomReader(swap_ij=False)
            one = reader.read(str(path))
            for name in ("RescaleSlope", "RescaleIntercept"):
                if name in one and _given(one, name) is None:
                    delattr(one, name)  # empty, as after anonymization
            array, _ = reader.get_data(one)
    except Exception as error:
        raise _undecodable(path, error) from None
    if (turned := _turned(_header(path))) is not None:
        array = turned - array
    return array[..., None] if array.ndim == 2 else array


def _turned(header: Any) -> float | None:
    """The sum of a value and of what it becomes, where low values are to be bright; else None.

    Values that a file says are white where they are low (MONOCHROME1) are turned round within the
    range that its bits can have, so that they are as those of other files.
    """
    if str(getattr(header, "PhotometricInterpretation", "")) != "MONOCHROME1":
        return None
    bits = int(_given(header, "BitsStored") or header.BitsAllocated)
    lowest = -(1 << (bits - 1)) if int(header.PixelRepresentation) else 0
    highest = lowest + (1 << bits) - 1
    slope = float(1 if (one := _given(header, "RescaleSlope")) is None else one)
    return slope * (lowest + highest) + 2 * float(_given(header, "RescaleIntercept") or 0)


def _given(header: Any, name: str) -> Any:
    """The value of an element; None where it is missing or, as after anonymization, empty."""
    value = getattr(header, name, None)
    return None if value is None or str(value) in ("", "[]") else value


def _needed(package: str, path: Path) -> None:
    try:
        __import__(package)
    except ImportError:
        raise ConfigurationError(
            f"{path}: is read by {package}, which is not here; pip install znorm[medical]"
        ) from None


def _undecodable(path: Path, error: Exception) -> DataError:
    reason = " ".join(str(error).split())[:160] or type(error).__name__
    return DataError(f"{path}: cannot be decoded ({reason})")
