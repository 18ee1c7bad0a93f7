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

from znorm.lab.datasets import Split
from znorm.lab.metrics import dice
from znorm.lab.reporting.svg import ORANGE, as_svg, style
from znorm.lab.text import readable

__all__ = ["Case", "case", "draw_cases", "notable", "outlined"]

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

TRUTH = "#ffffff"
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
    truth : array of shape (H, W), bool, or None
    predictions : mapping
        Masks of the same shape, by the title of their column.
    """

    title: str
    image: Pixels
    truth: Mask | None
    predictions: Mapping[str, Mask]


def case(
    split: Split, row: int, title: str, predictions: Mapping[str, Mask], *, truth: bool = True
) -> Case:
    """The image at ``row`` of a split, its true mask if that is known, and what was predicted."""
    image = split.images[row].expand(3, -1, -1) if split.images.shape[1] == 1 else split.images[row]
    pixels = np.ascontiguousarray(image[:3].permute(1, 2, 0).numpy())
    true = split.targets[row].numpy().astype(bool) if truth else None
    return Case(title, pixels, true, predictions)


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


def draw_cases(cases: Sequence[Case], file: Any = None) -> str:
    """A row a case: the image, the true outline, and each prediction's over the true one.

    Parameters
    ----------
    cases : sequence of Case
        All with the same columns.
    file : path or binary file, optional
        Where a PNG goes; without it the figure comes back as SVG.

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
                    _outline(axes, truth, TRUTH)
                if title in one.predictions:
                    mask = one.predictions[title]
                    _outline(axes, mask[::step, ::step], ORANGE)
                    if one.truth is not None:
                        score = float(dice(torch.from_numpy(mask)[None], one.truth[None]))
                        axes.set_xlabel(f"Dice {score:.3f}", fontsize=8)
            # A file's name.
            panels[0].set_ylabel(readable(one.title), fontsize=8, parse_math=False)
        if file is None:
            label = f"Outlines on {len(cases)} pictures: {', '.join(titles[1:])}"
            return as_svg(figure, label=label, description=_in_words(cases))
        figure.savefig(file, format="png", dpi=150, facecolor="white")
        return ""


def _in_words(cases: Sequence[Case]) -> str:
    """The score of each outline."""
    rows = []
    for one in cases:
        texts = [
            f"{name} {float(dice(torch.from_numpy(mask)[None], one.truth[None])):.3f}"
            for name, mask in one.predictions.items()
            if one.truth is not None
        ]
        scores = f"Dice {', '.join(texts)}" if texts else "no true mask"
        rows.append(f"{one.title}: {scores}".replace("\n", " "))
    return f"{'; '.join(rows)}."


def _outline(axes: Any, mask: Mask, colour: str) -> None:
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
    for mask, colour in ((one.truth, TRUTH), *((m, ORANGE) for m in one.predictions.values())):
        if mask is not None:
            rgb = tuple(int(colour[at : at + 2], 16) for at in (1, 3, 5))
            pixels[mask & ~binary_erosion(mask)] = rgb
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
