"""The rule by which pictures of any form become what a net is fed: one size, one kind, 0 to 255."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from znorm.lab.datasets.own.reading import Facts, read_slice
from znorm.lab.datasets.tiles import corners
from znorm.lab.errors import ConfigurationError, DataError

__all__ = ["Rule", "rule_of"]

Pixels = npt.NDArray[np.uint8]

# Pixels on a side, by default at most: larger pictures are made smaller.
LARGEST = 128
# Nets for masks halve a picture five times.
_MULTIPLE = 32
# Images that the window is taken from.
_LOOKED_AT = 64
_PERCENTILES = (0.5, 99.5)


class Rule(NamedTuple):
    """The steps that each picture goes through, in this order.

    Parameters
    ----------
    channels : 1 or 3
        Colours become grey by their luminance; grey is repeated.
    window : tuple of float or None
        Values that become 0 and 255, those beyond them too; None for pictures of 8 bits.
    size : tuple of int
        Height and width: by bilinear interpolation of what is averaged over the pixels that it
        stands for; masks take their nearest pixel.
    overlap : float or None
        Pictures are not resized but cut into tiles of that size, of which neighbours share so much
        of their side; what is smaller than a tile is filled up with 0.
    labels : mapping or None
        The values that masks have for what they mark, by name; None where they mark one thing.
    """

    channels: int
    window: tuple[float, float] | None
    size: tuple[int, int]
    overlap: float | None = None
    labels: Mapping[str, int] | None = None

    @property
    def text(self) -> str:
        kind = "grey" if self.channels == 1 else "in colour"
        height, width = self.size
        parts = [f"{height}x{width} pixels, {kind}"]
        if self.overlap is not None:
            share = f"{100 * self.overlap:g} %"
            parts = [f"tiles of {height}x{width} pixels that overlap by {share}, {kind}"]
        if self.window is not None:
            low, high = self.window
            parts.append(f"values from {low:g} to {high:g} as 0 to 255, with 256 steps between")
        if self.labels is not None:
            named = ", ".join(f"{value} is {name}" for name, value in self.labels.items())
            parts.append(f"in masks {named}")
        return "; ".join(parts)

    def places(self, height: int, width: int) -> list[tuple[int, int]] | None:
        """The upper left corners of a picture's tiles; None where it is resized."""
        return None if self.overlap is None else corners(height, width, self.size, self.overlap)

    def pictures(self, pixels: npt.NDArray[Any]) -> Pixels:
        """From (H, W, C) of any kind to (images, height, width, channels): one, or its tiles."""
        values = torch.from_numpy(np.ascontiguousarray(pixels).astype(np.float32)).permute(2, 0, 1)
        if self.channels == 1 and len(values) == 3:
            values = (values * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0)[None]
        if self.window is not None:
            low, high = self.window
            values = (values.nan_to_num(nan=low) - low) * (255 / (high - low))
        values = values.clamp(0, 255)
        if self.overlap is None and values.shape[1:] != self.size:
            values = functional.interpolate(
                values[None], self.size, mode="bilinear", antialias=True
            )[0]
        rounded = values.round().clamp(0, 255).to(torch.uint8).expand(self.channels, -1, -1)
        return self._cut(rounded.permute(1, 2, 0).numpy())

    def shown(self, pixels: npt.NDArray[Any]) -> Pixels:
        """From (H, W, C) of any kind to the same in 8 bits, its size as it is."""
        height, width = pixels.shape[:2]
        whole: Pixels = self._replace(size=(height, width), overlap=None).pictures(pixels)[0]
        return whole

    def masks(self, numbers: Pixels) -> Pixels:
        """From (H, W) of numbers to (images, height, width)."""
        if self.overlap is not None or numbers.shape == self.size:
            return self._cut(numbers)
        values = torch.from_numpy(numbers)[None, None].to(torch.float32)
        nearest = functional.interpolate(values, self.size, mode="nearest-exact")[0]
        resized: Pixels = nearest.to(torch.uint8).numpy()
        return resized

    def _cut(self, pixels: Pixels) -> Pixels:
        places = self.places(*pixels.shape[:2])
        if places is None:
            return pixels[None]
        height, width = self.size
        down, across = (max(0, side - pixels.shape[axis]) for axis, side in enumerate(self.size))
        padded = np.pad(pixels, [(0, down), (0, across), (0, 0)][: pixels.ndim])
        return np.stack([padded[y : y + height, x : x + width] for y, x in places])


def rule_of(
    facts: Mapping[Path, Facts],
    training: Sequence[tuple[Path, int]],
    output: str,
    chosen: Mapping[str, Any],
) -> Rule:
    """The rule for these files, with what the user has chosen.

    Parameters
    ----------
    facts : mapping
        Of each file of images.
    training : sequence of (Path, int)
        Of the training images the file, and the slice in it: a window is taken from these alone.
    output : "classes" or "mask"
    chosen : mapping
        ``size``, ``channels``, ``window``, ``overlap`` and ``labels``, where they are chosen.

    Raises
    ------
    ConfigurationError
        For a choice that is not valid.
    DataError
        For files of different channels or kinds of numbers, where nothing was chosen.
    """
    channels = chosen.get("channels")
    if channels is None:
        channels = _alike(facts, "channels", "give data.channels, 1 or 3, to take all alike")
    if channels not in (1, 3):
        raise ConfigurationError(f"data.channels: expected 1 or 3, found {channels!r}")
    kind = None
    if chosen.get("window") is None:
        kind = _alike(facts, "kind", "give data.window, as [LOW, HIGH], to take all alike")
    window = _window(chosen.get("window"))
    if window is None and kind != "uint8":
        window = _window_of(facts, training)
    overlap = _overlap(chosen.get("overlap"), output)
    return Rule(
        channels, window, _size(facts, output, chosen.get("size")), overlap, chosen.get("labels")
    )


def _overlap(value: Any, output: str) -> float | None:
    if value is None:
        return None
    if output != "mask":
        raise ConfigurationError("data.overlap: tiles are for masks; classes are of whole pictures")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 0.75:
        raise ConfigurationError(f"data.overlap: expected a share from 0 to 0.75, found {value!r}")
    return float(value)


def _alike(facts: Mapping[Path, Facts], name: str, advice: str) -> Any:
    first: tuple[Path, Any] | None = None
    words = {"channels": "channels", "kind": "numbers of a pixel"}[name]
    for path, of_file in facts.items():
        value = getattr(of_file, name)
        if first is None:
            first = (path, value)
        elif first[1] != value:
            raise DataError(
                f"{path}: {words}: {value}, and {first[1]} in {first[0].name}; {advice}"
            )
    assert first is not None, "a listing has images"
    return first[1]


def _window(value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    try:
        low, high = (float(one) for one in value)
    except (TypeError, ValueError):
        low = high = 0.0
    if not (np.isfinite([low, high]).all() and low < high):
        raise ConfigurationError(
            f"data.window: expected two values, the lower one first, found {value!r}"
        )
    return low, high


def _window_of(
    facts: Mapping[Path, Facts], training: Sequence[tuple[Path, int]]
) -> tuple[float, float]:
    """That which all DICOM files ask for, else between percentiles of training images."""
    asked = {of_file.window for of_file in facts.values()}
    if len(asked) == 1 and (one := next(iter(asked))) is not None and one[0] < one[1]:
        return one
    step = max(1, len(training) // _LOOKED_AT)
    values = np.concatenate(
        [read_slice(path, number).ravel()[::7] for path, number in training[::step]]
    ).astype(np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        raise DataError(f"{training[0][0]}: holds no finite values")
    low, high = (float(f"{one:.6g}") for one in np.percentile(values, _PERCENTILES))
    return (low, high) if low < high else (low, low + 1)


def _size(facts: Mapping[Path, Facts], output: str, chosen: Any) -> tuple[int, int]:
    if chosen is not None:
        sides = (chosen, chosen) if isinstance(chosen, int) else chosen
        try:
            height, width = sides
        except (TypeError, ValueError):
            height = width = 0
        valid = all(
            isinstance(side, int) and not isinstance(side, bool) and 8 <= side <= 4096
            for side in (height, width)
        )
        if not valid:
            raise ConfigurationError(
                f"data.size: expected pixels on a side, or [HEIGHT, WIDTH], from 8 to 4096, found "
                f"{chosen!r}"
            )
        return height, width
    height = statistics.median_low([one.height for one in facts.values()])
    width = statistics.median_low([one.width for one in facts.values()])
    scale = min(1.0, LARGEST / max(height, width))
    sides = max(8, round(height * scale)), max(8, round(width * scale))
    if output == "mask":
        height, width = (-(-side // _MULTIPLE) * _MULTIPLE for side in sides)
        return height, width
    return sides
