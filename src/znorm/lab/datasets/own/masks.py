"""The meaning of the values in the user's masks: one thing that is marked, or several."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from znorm.lab.datasets.dataset import RESERVED
from znorm.lab.datasets.files import stat_file
from znorm.lab.datasets.own.reading import Facts, facts_of, mask_pixels
from znorm.lab.errors import ConfigurationError, DataError

__all__ = [
    "MOST_LABELS",
    "check_form",
    "chosen_labels",
    "labels_of",
    "numbered",
    "values_of",
]

Labels = Mapping[str, int]

MOST_LABELS = 32
RESERVED_NAMES = frozenset((*RESERVED, "not marked"))
# More values than this are greys; so many are kept to be told.
_MOST_VALUES = 64


def values_of(path: Path, number: int) -> tuple[float, ...]:
    """The values of a mask, the lowest first; of very many the first ones.

    Raises
    ------
    DataError
        If it cannot be read, or has colours.
    """
    entry = stat_file(path)
    return _values(path, number, (entry.st_mtime_ns, entry.st_size))


# A folder is resolved and loaded, each of which asks; once is enough while a file stays.
@lru_cache(maxsize=1 << 17)
def _values(path: Path, number: int, state: tuple[int, int]) -> tuple[float, ...]:
    pixels = mask_pixels(path, number)
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise DataError(f"{path}: expected a mask, found values that are not finite")
    return tuple(np.unique(pixels)[:_MOST_VALUES].tolist())


def chosen_labels(value: Any) -> dict[str, int] | None:
    """The labels that the user has named, or whose values alone.

    Raises
    ------
    ConfigurationError
        If they are none.

    Examples
    --------
    >>> chosen_labels([85, 170])
    {'85': 85, '170': 170}
    >>> chosen_labels({"liver": 1, "tumour": 2})
    {'liver': 1, 'tumour': 2}
    """
    if value is None:
        return None
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = {str(one): one for one in value}
    fitting = (
        isinstance(value, Mapping)
        and 0 < len(value) <= MOST_LABELS
        and all(isinstance(name, str) and name.strip() for name in value)
        and all(type(one) is int and 0 < one < 1 << 16 for one in value.values())
        and RESERVED_NAMES.isdisjoint(value)
        and len(set(value.values())) == len(value)
    )
    if not fitting:
        raise ConfigurationError(
            "data.labels: expected the values of what masks mark, as [1, 2], or their names and "
            f"values, as {{liver: 1, tumour: 2}}, above 0, which is nothing, found {value!r}"
        )
    return dict(value)


def labels_of(masks: Iterable[tuple[Path, tuple[float, ...]]]) -> dict[str, int] | None:
    """The labels that follow from the values of all masks; None where they mark one thing.

    One thing is 0 and 255, or 0 and 1; several are 1, 2, 3 and so on, without a gap.

    Raises
    ------
    DataError
        For other values, naming a mask that has them.
    """
    several = list(masks)
    if all(_is_plain(values) for _, values in several):
        return None
    there = sorted({value for _, values in several for value in values})
    last = int(there[-1])
    if there[-1] <= MOST_LABELS and set(there) | {0} == set(range(last + 1)):
        return {f"class {number}": number for number in range(1, last + 1)}
    path, values = max(several, key=lambda one: (not _is_plain(one[1]), len(one[1])))
    shown = ", ".join(f"{value:g}" for value in values[:5])
    more = f" and {len(values) - 5} more values" if len(values) > 5 else ""
    advice = "save it with two values, as png or another kind without loss"
    if len(there) <= MOST_LABELS and all(value == int(value) >= 0 for value in there):
        named = ", ".join(f"{value:g}" for value in there if value)
        advice = f"if these are classes, give data.labels=[{named}]"
    raise DataError(
        f"{path}: expected a mask of 0 and 255, of 0 and 1, or of 0 to a number of classes, found "
        f"{shown}{more}; {advice}"
    )


def _is_plain(values: tuple[float, ...]) -> bool:
    return set(values) <= {0, 255} or set(values) <= {0, 1}


def check_form(mask: Path, of_image: Facts) -> None:
    """Refuse a mask whose form is not its image's.

    Raises
    ------
    DataError
        If it has another number of slices, another size, or axes that run in other directions.
    """
    of_mask = facts_of(mask)
    if of_mask.slices != of_image.slices:
        raise DataError(
            f"{mask}: expected {of_image.slices} slices, as its image has, found {of_mask.slices}"
        )
    if (of_mask.height, of_mask.width) != (of_image.height, of_image.width):
        raise DataError(
            f"{mask}: expected {of_image.height}x{of_image.width} pixels, as its image has, found "
            f"{of_mask.height}x{of_mask.width}"
        )
    if None not in (of_mask.axes, of_image.axes) and of_mask.axes != of_image.axes:
        raise DataError(
            f"{mask}: its axes run {of_mask.axes}, and those of its image {of_image.axes}; save "
            "both in one orientation"
        )


def numbered(
    path: Path, number: int, labels: Labels | None, image: tuple[int, int]
) -> npt.NDArray[np.uint8]:
    """A mask as (H, W) of 0, and of each label the number of its place, from 1.

    Parameters
    ----------
    path, number : Path, int
        The file, and the slice in it.
    labels : mapping or None
        Values by name; None where masks mark one thing.
    image : (int, int)
        Height and width of its image.

    Raises
    ------
    DataError
        If it has another size, or other values.
    """
    pixels = mask_pixels(path, number)
    if pixels.shape != image:
        size = "x".join(map(str, pixels.shape))
        raise DataError(
            f"{path}: expected {image[0]}x{image[1]} pixels, as its image has, found {size}"
        )
    if labels is None and not _is_plain(values_of(path, number)):
        labels_of([(path, values_of(path, number))])
        raise DataError(f"{path}: expected a mask of one thing, found numbers of several")
    if labels is None:
        return (pixels > 0).astype(np.uint8)
    other = [value for value in values_of(path, number) if value not in (0, *labels.values())]
    if other:
        named = ", ".join(map(str, labels.values()))
        raise DataError(f"{path}: expected a mask of 0 and {named}, found {other[0]:g}")
    numbers = np.zeros(pixels.shape, dtype=np.uint8)
    for place, value in enumerate(labels.values(), 1):
        numbers[pixels == value] = place
    return numbers
