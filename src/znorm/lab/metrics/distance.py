"""Distances between the boundaries of two masks.

The boundary of a mask is the mask minus its 4-connected erosion. What lies beyond the image counts
as background, so mask pixels at the image's border are boundary pixels. Distances run between pixel
centers, with the spacing applied.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from znorm.lab.metrics.masks import Mask, as_masks

__all__ = ["hausdorff", "hausdorff_percentiles", "hausdorff_rows"]

_Array: TypeAlias = np.ndarray[Any, Any]


def hausdorff(
    prediction: Mask,
    target: Mask,
    spacing: Sequence[float] = (1.0, 1.0),
    percentile: float = 100,
    rule: Literal["diagonal", "monai"] = "diagonal",
) -> Tensor:
    """Hausdorff distance of each case, between boundary pixels.

    From each boundary pixel of one mask the distance to the nearest boundary pixel of the other;
    the percentile of these distances, once in each direction; the larger of the two.
    ``percentile=100`` is the Hausdorff distance, ``percentile=95`` is HD95, as MONAI and DeepMind's
    surface-distance take it; medpy takes one percentile of both directions together.

    Parameters
    ----------
    prediction, target : Tensor or array of shape (N, H, W)
        Boolean masks, or of another type that holds only 0 and 1.
    spacing : two floats
        The distance between neighbouring rows and between neighbouring columns, such as
        millimetres. As it stands, distances are in pixels.
    percentile : float
        Greater than 0, at most 100; numpy's linear interpolation.
    rule : "diagonal" or "monai"
        What stands for the distance where a mask is empty.

        - ``"diagonal"``: both empty 0; one empty the image's diagonal in the units of ``spacing``,
          sqrt((H * row spacing)^2 + (W * column spacing)^2). A missed lesion thus costs more than
          any found one. The BraTS challenges do the same: their 373.13 is the diagonal of
          240x240x155.
        - ``"monai"``: both empty nan; one empty inf, or nan where the percentile is below 100, as
          MONAI 1.6 gives for ``percentile=None`` and for a percentile. Its means leave nan out, so
          that missed lesions vanish from its mean HD95. Where neither mask is empty both rules give
          the same.

        torchmetrics 1.9 has no rule to offer: it stops at two empty masks, and is wrong where an
        image is not square.

    Returns
    -------
    Tensor of shape (N,), float64
        In the units of ``spacing``.

    Raises
    ------
    TypeError, ValueError
        If a mask, the spacing, the percentile or the rule is not such a one.

    References
    ----------
    Maier-Hein et al., "Metrics reloaded", Nature Methods 2024, on boundaries and percentiles. The
    distance transform is scipy's exact Euclidean one.

    Examples
    --------
    >>> import torch
    >>> a = torch.zeros(1, 5, 5)
    >>> b = torch.zeros(1, 5, 5)
    >>> a[0, 1, 1] = b[0, 4, 1] = 1
    >>> hausdorff(a, b)
    tensor([3.], dtype=torch.float64)
    >>> hausdorff(a, b, spacing=(0.5, 2.0))
    tensor([1.5000], dtype=torch.float64)
    """
    return hausdorff_percentiles(prediction, target, (percentile,), spacing, rule)[0]


def hausdorff_percentiles(
    prediction: Mask,
    target: Mask,
    percentiles: Sequence[float],
    spacing: Sequence[float] = (1.0, 1.0),
    rule: Literal["diagonal", "monai"] = "diagonal",
) -> Tensor:
    """`hausdorff` at several percentiles, for the price of one.

    Parameters
    ----------
    percentiles : sequence of P floats
        Each as in `hausdorff`, and so are the other arguments and the errors.

    Returns
    -------
    Tensor of shape (P, N), float64
        A row for each percentile, in the units of ``spacing``.

    Examples
    --------
    >>> import torch
    >>> a, b = torch.zeros(1, 1, 9), torch.zeros(1, 1, 9)
    >>> a[..., 0] = b[..., 0] = b[..., 5] = 1
    >>> hausdorff_percentiles(a, b, (100, 95))
    tensor([[5.0000],
            [4.7500]], dtype=torch.float64)
    """
    # Imported here, where there are masks: every command would wait a third of a second for it.
    from scipy.ndimage import distance_transform_edt

    predicted, true = as_masks("hausdorff", prediction, target)
    sampling = _check_spacing(spacing)
    for percentile in percentiles:
        _check_percentile(percentile)
    if rule not in ("diagonal", "monai"):
        raise ValueError(f"hausdorff: rule must be 'diagonal' or 'monai', found {rule!r}")

    _, height, width = predicted.shape
    has_prediction = predicted.any(2).any(1).cpu()
    has_target = true.any(2).any(1).cpu()
    one, none = has_prediction ^ has_target, ~(has_prediction | has_target)
    values = torch.empty(len(percentiles), len(predicted), dtype=torch.float64)
    for row, percentile in zip(values, percentiles, strict=True):
        if rule == "monai":
            row[none] = math.nan
            row[one] = math.inf if percentile == 100 else math.nan
        else:
            row[none] = 0.0
            row[one] = math.hypot(height * sampling[0], width * sampling[1])

    # Outside the box around both masks there is no boundary pixel, so nothing is lost by the crop.
    either = predicted | true
    rows, columns = either.any(2).cpu().numpy(), either.any(1).cpu().numpy()
    predicted_array, true_array = predicted.cpu().numpy(), true.cpu().numpy()
    for case in torch.nonzero(has_prediction & has_target).flatten().tolist():
        box = (case, _extent(rows[case]), _extent(columns[case]))
        a, b = _boundary(predicted_array[box]), _boundary(true_array[box])
        to_b = distance_transform_edt(~b, sampling=sampling)
        to_a = distance_transform_edt(~a, sampling=sampling)
        directed = np.percentile(to_b[a], percentiles), np.percentile(to_a[b], percentiles)
        values[:, case] = torch.from_numpy(np.maximum(*directed))
    return values


def _extent(marked: _Array) -> slice:
    places = np.flatnonzero(marked)
    return slice(int(places[0]), int(places[-1]) + 1)


def _boundary(mask: _Array) -> _Array:
    # Zeros all around stand for the background beyond the image, and beyond the crop.
    m = np.pad(mask, 1)
    inner = m[:-2, 1:-1] & m[2:, 1:-1] & m[1:-1, :-2] & m[1:-1, 2:]
    return np.asarray(mask & ~inner)


def _check_spacing(spacing: Sequence[float]) -> tuple[float, float]:
    wanted = "hausdorff: spacing must be two positive numbers (rows, columns)"
    try:
        values = tuple(spacing)
    except TypeError:
        raise TypeError(f"{wanted}, found {type(spacing).__name__} {spacing!r}") from None
    if any(isinstance(v, bool) or not isinstance(v, Real) for v in values):
        raise TypeError(f"{wanted}, found {spacing!r}")
    if len(values) != 2 or not all(math.isfinite(v) and v > 0 for v in values):
        raise ValueError(f"{wanted}, found {spacing!r}")
    return float(values[0]), float(values[1])


def _check_percentile(percentile: float) -> None:
    wanted = "hausdorff: percentile must be a number greater than 0 and at most 100"
    if isinstance(percentile, bool) or not isinstance(percentile, Real):
        raise TypeError(f"{wanted}, found {type(percentile).__name__} {percentile!r}")
    if not 0 < percentile <= 100:
        raise ValueError(f"{wanted}, found {percentile!r}")


def hausdorff_rows(prediction: Mask, target: Mask) -> Tensor:
    """The row variant of the Hausdorff distance: NOT a distance in pixels.

    ``scipy.spatial.distance.directed_hausdorff`` takes a list of points. Called on a mask itself,
    it takes each row of the image for one point with a coordinate a column, so the result is the
    square root of a number of pixels by which two rows differ. A mask shifted up or down by any
    distance may score 0. It is here because the published values of the paper fit it, and for
    nothing else.

    Both masks empty: 0. One empty: the square root of the largest number of mask pixels in a row.

    Parameters
    ----------
    prediction, target : Tensor or array of shape (N, H, W)
        Boolean masks, or of another type that holds only 0 and 1.

    Returns
    -------
    Tensor of shape (N,), float64
        The larger of the two directions; no unit.

    Raises
    ------
    TypeError, ValueError
        If one is not such a mask; if the shapes differ.

    Examples
    --------
    >>> import torch
    >>> a = torch.tensor([[[1, 1, 0, 0], [0, 0, 0, 0]]])
    >>> b = torch.tensor([[[1, 0, 0, 1], [0, 0, 0, 0]]])
    >>> hausdorff_rows(a, b)
    tensor([1.4142], dtype=torch.float64)
    """
    predicted, true = as_masks("hausdorff_rows", prediction, target)
    values = torch.empty(len(predicted), dtype=torch.float64)
    for case in range(len(predicted)):
        a, b = predicted[case].cpu().float(), true[case].cpu().float()
        # Squared distances of rows of 0 and 1 are counts of pixels, exact in float32, and come from
        # one product of matrices: scipy's own loop takes several times as long.
        squared = a.sum(1, keepdim=True) + b.sum(1) - 2 * (a @ b.T)
        values[case] = torch.maximum(squared.amin(1).max(), squared.amin(0).max())
    return values.sqrt()
