"""Masks over the pictures they belong to, as outlines."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from znorm.lab.metrics import Cases
from znorm.lab.reporting.svg import ORANGE, as_svg, style
from znorm.lab.text import readable

__all__ = ["Case", "case", "draw_cases", "notable", "outlined"]

Pixels = npt.NDArray[np.uint8]
# True where there is something, or the number of what there is.
Mask = npt.NDArray[np.bool_] | Pixels

TRUTH = "#ffffff"
# Of what a net marks, by number from 1; then they begin anew.
MARKS = (ORANGE, "#56b4e9", "#009e73", "#f0e442", "#cc79a7", "#d55e00")
# Pixels on a side that a panel shows; larger pictures are thinned out.
_SIDE = 256


@dataclass(frozen=True)
class Case:
    """One picture with the masks to draw on it.

    Parameters
    ----------
    title : str
        What stands beside it.
    image : array of shape (H, W, 3), uint8
    truth : array of shape (H, W), bool or uint8, or None
    predictions : mapping
        Masks of the same shape, by the title of their column.
    """

    title: str
    image: Pixels
    truth: Mask | None
    predictions: Mapping[str, Mask]


def case(title: str, image: Tensor, truth: Tensor, predictions: Mapping[str, Tensor]) -> Case:
    """A case of an image (C, H, W), in grey or colour, its true mask, and what was predicted."""
    colours = image.expand(3, -1, -1) if len(image) == 1 else image[:3]
    pixels = np.ascontiguousarray(colours.permute(1, 2, 0).numpy())
    masks = {name: mask.numpy() for name, mask in predictions.items()}
    return Case(title, pixels, truth.numpy(), masks)


def notable(scores: Sequence[float], present: Sequence[bool]) -> dict[str, int]:
    """The places of the best, the median and the worst score among those that are present.

    Of an even number the lower of the two in the middle. Fewer than three give fewer.

    >>> notable([0.5, 0.9, 0.1, 0.7, 1.0], [True, True, True, True, False])
    {'best': 1, 'median': 0, 'worst': 2}
    """
    ranked = sorted((i for i, there in enumerate(present) if there), key=lambda i: scores[i])
    if not ranked:
        return {}
    places = {"best": ranked[-1], "median": ranked[(len(ranked) - 1) // 2], "worst": ranked[0]}
    return {
        name: i for n, (name, i) in enumerate(places.items()) if i not in [*places.values()][:n]
    }


def mark(number: int) -> str:
    """The colour of what a net marks with a number, from 1."""
    return MARKS[(number - 1) % len(MARKS)]


def draw_cases(cases: Sequence[Case], file: Any = None, labels: Sequence[str] = ()) -> str:
    """A row a case: the image, the true outline, and each prediction's over the true one.

    Parameters
    ----------
    cases : sequence of Case
        All with the same columns.
    file : path or binary file, optional
        Where a PNG goes; without it the figure comes back as SVG.
    labels : sequence of str
        The names of what is marked, where masks mark several things.

    Returns
    -------
    str
        The SVG, or nothing.
    """
    columns = list(cases[0].predictions)
    titles = ["Image", "Ground truth", *columns]
    with style():
        from matplotlib.figure import Figure

        size = (1.62 * len(titles) + 1.0, 1.95 * len(cases) + 0.25)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(len(cases), len(titles), squeeze=False)
        for row, (panels, one) in enumerate(zip(grid, cases, strict=True)):
            step = max(1, -(-max(one.image.shape[:2]) // _SIDE))
            truth = None if one.truth is None else one.truth[::step, ::step]
            for title, axes in zip(titles, panels, strict=True):
                axes.imshow(one.image[::step, ::step], interpolation="none")
                axes.set_xticks([])
                axes.set_yticks([])
                for side in axes.spines.values():
                    side.set_visible(False)
                if row == 0:
                    axes.set_title(readable(title), fontsize=9, parse_math=False)
                if title != "Image" and truth is not None:
                    for number in _numbers(truth):
                        _outline(axes, truth == number, TRUTH)
                if title in one.predictions:
                    mask = one.predictions[title]
                    thin = mask[::step, ::step]
                    for number in _numbers(thin):
                        _outline(axes, thin == number, mark(number))
                    if one.truth is not None:
                        axes.set_xlabel(f"Dice {_dice(mask, one.truth, labels):.3f}", fontsize=8)
            # A file's name.
            panels[0].set_ylabel(readable(one.title), fontsize=8, parse_math=False)
        if file is None:
            label = f"Outlines on {len(cases)} pictures: {', '.join(titles[1:])}"
            return as_svg(figure, label=label, description=_in_words(cases, labels))
        figure.savefig(file, format="png", dpi=150, facecolor="white")
        return ""


def _numbers(mask: Mask) -> list[int]:
    """The numbers that a mask holds, without 0."""
    return [int(number) for number in np.unique(mask) if number]


def _dice(mask: Mask, truth: Mask, labels: Sequence[str]) -> float:
    predicted, true = torch.from_numpy(mask)[None], torch.from_numpy(truth)[None]
    return float(Cases.of(predicted, true, ["case"], labels=labels or None).dice())


def _in_words(cases: Sequence[Case], labels: Sequence[str]) -> str:
    """The score of each outline."""
    rows = []
    for one in cases:
        texts = [
            f"{name} {_dice(mask, one.truth, labels):.3f}"
            for name, mask in one.predictions.items()
            if one.truth is not None
        ]
        scores = f"Dice {', '.join(texts)}" if texts else "no true mask"
        rows.append(f"{one.title}: {scores}".replace("\n", " "))
    return f"{'; '.join(rows)}."


def _outline(axes: Any, mask: npt.NDArray[np.bool_], colour: str) -> None:
    # A border around it: a mask that touches the picture's edge has an outline there, too.
    from matplotlib.patheffects import withStroke

    height, width = mask.shape
    if mask.any():
        drawn = axes.contour(
            np.arange(-1, width + 1),
            np.arange(-1, height + 1),
            np.pad(mask, 1).astype(float),
            levels=[0.5],
            colors=[colour],
            linewidths=0.9,
        )
        # Dark beneath it, so that it shows on pictures of any colour.
        drawn.set(path_effects=[withStroke(linewidth=2.2, foreground="#000000")])
        axes.set_xlim(-0.5, width - 0.5)
        axes.set_ylim(height - 0.5, -0.5)


def outlined(one: Case) -> bytes:
    """One picture as PNG in its own size, the true outline and then each prediction's drawn in."""
    from scipy.ndimage import binary_erosion

    pixels = one.image.copy()
    drawn = [] if one.truth is None else [(one.truth, n, TRUTH) for n in _numbers(one.truth)]
    for mask in one.predictions.values():
        drawn += [(mask, number, mark(number)) for number in _numbers(mask)]
    for mask, number, colour in drawn:
        rgb = tuple(int(colour[at : at + 2], 16) for at in (1, 3, 5))
        marks = mask == number
        pixels[marks & ~binary_erosion(marks)] = rgb
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
