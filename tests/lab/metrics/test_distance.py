"""Distances between masks: by hand, by brute force, and against MONAI, torchmetrics and scipy."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import HausdorffDistanceMetric, compute_hausdorff_distance
from scipy.spatial.distance import cdist, directed_hausdorff
from torch import Tensor
from torchmetrics.functional.segmentation import hausdorff_distance

from znorm.lab.metrics import hausdorff, hausdorff_rows
from znorm.lab.metrics.distance import hausdorff_percentiles

EMPTY = ("......", "......", "......", "......")
LESION = (".##...", ".##...", "......", "......")
FALSE_PIXEL = (".##...", ".##...", "......", ".....#")
TOUCHING = ("...##.", "...##.", "......", "......")
FULL = ("#####", "#####", "#####", "#####", "#####")
INNER = (".....", ".###.", ".###.", ".###.", ".....")
RING = (".....", ".###.", ".#.#.", ".###.", ".....")
LEFT, RIGHT = ("##..", "##.."), ("..##", "..##")
CORNER, OPPOSITE = (
    ("#.....", "......", "......", "......"),
    ("......", "......", "......", "....#."),
)
DOT, CROSSROADS = ("......", "......", "..#..."), ("..#...", "......", ".....#")
LINE, POINT = ("#####",), ("#....",)


def drawn(rows: tuple[str, ...]) -> Tensor:
    return torch.tensor([[[pixel == "#" for pixel in row] for row in rows]])


# prediction, truth, options -> distance.
TABLE = {
    "both empty": (EMPTY, EMPTY, {}, 0),
    "right": (LESION, LESION, {}, 0),
    # The diagonal of 4 rows and 6 columns.
    "missed lesion": (EMPTY, LESION, {}, math.sqrt(16 + 36)),
    "false positive on empty": (LESION, EMPTY, {}, math.sqrt(16 + 36)),
    # 4 rows of 2 mm, 6 columns of 0.5 mm.
    "missed lesion, mm": (EMPTY, LESION, {"spacing": (2, 0.5)}, math.sqrt(8**2 + 3**2)),
    "missed lesion, HD95": (EMPTY, LESION, {"percentile": 95}, math.sqrt(16 + 36)),
    # From (3, 5) to (1, 2): 2 rows and 3 columns.
    "one false pixel": (FALSE_PIXEL, LESION, {}, math.sqrt(4 + 9)),
    # Distances from the prediction 0, 0, 0, 0, sqrt(13); from the truth all 0.  The 95th percentile
    # stands at 0.95 * 4 = 3.8 of the sorted five, counted from 0.
    "one false pixel, HD95": (FALSE_PIXEL, LESION, {"percentile": 95}, 0.8 * math.sqrt(13)),
    # The other way round the same: the larger of the two directions.
    "one missed pixel": (LESION, FALSE_PIXEL, {}, math.sqrt(4 + 9)),
    # Columns 1, 2 and 3, 4: from 1 to 3.
    "touching masks": (TOUCHING, LESION, {}, 2),
    "touching masks at the borders": (LEFT, RIGHT, {}, 2),
    # Beyond the image is background, so the boundary of a full mask is the image's outermost ring:
    # from its corner to the nearest of the inner ring 1 row and 1 column.
    "full": (FULL, INNER, {}, math.sqrt(2)),
    "full, both": (FULL, FULL, {}, 0),
    # Filling the hole adds an inner pixel and changes no boundary.
    "hole of one pixel": (INNER, RING, {}, 0),
    "anisotropic": (CORNER, OPPOSITE, {"spacing": (2, 0.5)}, math.sqrt(6**2 + 2**2)),
    # From (2, 2) two pixels: 2 rows up, 3 columns to the right.  To the prediction 2 and 3.
    "nearest in pixels": (DOT, CROSSROADS, {}, 3),
    # 6 and 3: other pixels are nearest and farthest now.
    "nearest in mm": (DOT, CROSSROADS, {"spacing": (3, 1)}, 6),
    # Distances from the line 0, 1, 2, 3, 4, from the point 0.  Pooled, their median would be 1.5.
    "median": (LINE, POINT, {"percentile": 50}, 2),
    "median, other way": (POINT, LINE, {"percentile": 50}, 2),
    "90th": (LINE, POINT, {"percentile": 90}, 3.6),
    "95th": (LINE, POINT, {"percentile": 95}, 3.8),
    "100th": (LINE, POINT, {"percentile": 100}, 4),
    "95th, mm": (LINE, POINT, {"percentile": 95, "spacing": (9, 0.5)}, 1.9),
}


@pytest.mark.parametrize("case", TABLE)
def test_by_hand(case: str) -> None:
    prediction, truth, options, expected = TABLE[case]
    value = hausdorff(drawn(prediction), drawn(truth), **options)
    assert value.dtype == torch.float64
    assert value.shape == (1,)
    assert float(value) == pytest.approx(expected, abs=1e-12)


def test_cases_of_a_batch_do_not_mix() -> None:
    p = torch.cat([drawn(row) for row in (EMPTY, FALSE_PIXEL, EMPTY, TOUCHING)])
    t = torch.cat([drawn(row) for row in (LESION, LESION, EMPTY, LESION)])
    one_by_one = [float(hausdorff(p[i : i + 1], t[i : i + 1])) for i in range(4)]
    assert hausdorff(p, t).tolist() == one_by_one
    assert hausdorff(p.numpy(), t.to(torch.uint8)).tolist() == one_by_one
    rows = [float(hausdorff_rows(p[i : i + 1], t[i : i + 1])) for i in range(4)]
    assert hausdorff_rows(p, t).tolist() == rows
    assert hausdorff(p[:0], t[:0]).shape == hausdorff_rows(p[:0], t[:0]).shape == (0,)


def test_percentiles_are_those_of_hausdorff() -> None:
    p = torch.cat([drawn(FALSE_PIXEL), drawn(EMPTY)])
    t = torch.cat([drawn(LESION), drawn(LESION)])
    both = hausdorff_percentiles(p, t, (95, 100), (2, 1))
    assert both[0].tolist() == hausdorff(p, t, (2, 1), 95).tolist()
    assert both[1].tolist() == hausdorff(p, t, (2, 1)).tolist()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"spacing": 1.0}, TypeError, "spacing must be two positive numbers .* found float 1.0"),
        ({"spacing": "ab"}, TypeError, "spacing must be two positive numbers"),
        ({"spacing": (1.0,)}, ValueError, r"spacing must be two positive .* found \(1.0,\)"),
        ({"spacing": (1.0, 0.0)}, ValueError, "spacing must be two positive"),
        ({"spacing": (1.0, math.nan)}, ValueError, "spacing must be two positive"),
        ({"percentile": 0}, ValueError, "percentile must be .* greater than 0 and at most 100"),
        ({"percentile": 100.1}, ValueError, "percentile must be .* found 100.1"),
        ({"percentile": math.nan}, ValueError, "percentile must be"),
        ({"percentile": None}, TypeError, "percentile must be .* found NoneType"),
        ({"rule": "torchmetrics"}, ValueError, "rule must be 'diagonal' or 'monai'"),
    ],
)
def test_bad_options(options, error, message) -> None:
    with pytest.raises(error, match=f"^hausdorff: {message}"):
        hausdorff(drawn(LESION), drawn(LESION), **options)


def test_bad_masks() -> None:
    with pytest.raises(ValueError, match=r"hausdorff: target must hold only 0 and 1, found 3"):
        hausdorff(torch.zeros(1, 2, 2), torch.full((1, 2, 2), 3))
    with pytest.raises(ValueError, match=r"hausdorff_rows: prediction must have shape \(N, H, W\)"):
        hausdorff_rows(torch.zeros(2, 2), torch.zeros(1, 2, 2))


@st.composite
def pairs(draw: st.DrawFn, square: bool = False) -> tuple[Tensor, Tensor]:
    """Two stacks of masks of one shape, empty and full ones among them."""
    height = draw(st.integers(1, 9))
    shape = draw(st.integers(1, 3)), height, height if square else draw(st.integers(1, 9))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    densities = st.sampled_from([0.0, 0.05, 0.3, 0.7, 0.95, 1.0])

    def stack() -> Tensor:
        density = np.array([draw(densities) for _ in range(shape[0])])[:, None, None]
        return torch.from_numpy(generator.random(shape) < density)

    return stack(), stack()


SPACINGS = st.tuples(st.floats(0.2, 5), st.floats(0.2, 5))
PERCENTILES = st.one_of(st.just(100.0), st.floats(1, 100))


def boundary(mask: np.ndarray) -> np.ndarray:
    """The coordinates of mask pixels of which one of four neighbours is outside the mask."""
    inside = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    return np.array(
        [
            (y, x)
            for y, x in sorted(inside)
            if not {(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)} <= inside
        ]
    )


@settings(deadline=None, max_examples=50)
@given(pairs(), SPACINGS, PERCENTILES)
def test_against_brute_force(
    masks: tuple[Tensor, Tensor], spacing: tuple[float, float], percentile: float
) -> None:
    values = hausdorff(*masks, spacing, percentile)
    for value, p, t in zip(values.tolist(), *(mask.numpy() for mask in masks), strict=True):
        if p.any() and t.any():
            distances = cdist(boundary(p) * spacing, boundary(t) * spacing)
            directed = (distances.min(axis) for axis in (0, 1))
            expected = max(np.percentile(each, percentile) for each in directed)
        elif p.any() or t.any():
            expected = math.hypot(p.shape[0] * spacing[0], p.shape[1] * spacing[1])
        else:
            expected = 0.0
        assert value == pytest.approx(expected, abs=1e-12)


def monai(p: Tensor, t: Tensor, percentile: float | None, spacing: tuple[float, float]) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of each empty mask
        return compute_hausdorff_distance(
            p[:, None].float(),
            t[:, None].float(),
            include_background=True,
            percentile=percentile,
            spacing=spacing,
        )[:, 0]


@settings(deadline=None, max_examples=50)
@given(pairs(), SPACINGS, PERCENTILES)
def test_against_monai(
    masks: tuple[Tensor, Tensor], spacing: tuple[float, float], percentile: float
) -> None:
    """The rule "monai" gives what MONAI gives, empty masks included; it computes in float32."""
    theirs = monai(*masks, None if percentile == 100 else percentile, spacing)
    ours = hausdorff(*masks, spacing, percentile, rule="monai")
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    # Where neither mask is empty, the rule makes no difference.
    found = ours.isfinite()
    assert ours[found].tolist() == hausdorff(*masks, spacing, percentile)[found].tolist()


@settings(deadline=None, max_examples=50)
@given(pairs(square=True), SPACINGS)
def test_against_torchmetrics(masks: tuple[Tensor, Tensor], spacing: tuple[float, float]) -> None:
    """Right on square images, where at most one mask is empty: then inf."""
    some = (masks[0] | masks[1]).flatten(1).any(1)
    p, t = (mask[some, None].int() for mask in masks)
    theirs = hausdorff_distance(
        p, t, num_classes=1, include_background=True, spacing=list(spacing)
    ).flatten()
    ours = hausdorff(p[:, 0], t[:, 0], spacing, rule="monai")
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@settings(deadline=None, max_examples=50)
@given(pairs())
def test_rows_against_scipy(masks: tuple[Tensor, Tensor]) -> None:
    expected = [
        max(directed_hausdorff(p, t)[0], directed_hausdorff(t, p)[0])
        for p, t in zip(*(mask.numpy().astype(float) for mask in masks), strict=True)
    ]
    np.testing.assert_allclose(hausdorff_rows(*masks), expected, rtol=1e-14)


def test_rows_by_hand() -> None:
    lesion = drawn(LESION)
    assert hausdorff_rows(drawn(EMPTY), drawn(EMPTY)).tolist() == [0]
    # Two pixels in each row of the lesion, none in the rows of the other.
    assert hausdorff_rows(drawn(EMPTY), lesion).tolist() == pytest.approx([math.sqrt(2)], rel=1e-14)
    # The row of the false pixel is nearest to an empty row, 1 pixel off; the distance is 3.6.
    assert hausdorff_rows(drawn(FALSE_PIXEL), lesion).tolist() == [1]
    # Columns 3, 4 against columns 1, 2: nearest is an empty row, 2 pixels off.
    assert hausdorff_rows(drawn(TOUCHING), lesion).tolist() == pytest.approx(
        [math.sqrt(2)], rel=1e-14
    )
    # Two rows lower it has the same rows, so 0: this is no distance between masks.
    lower = torch.roll(lesion, 2, 1)
    assert hausdorff_rows(lower, lesion).tolist() == [0]
    assert hausdorff(lower, lesion).tolist() == [2]


def test_where_monai_differs() -> None:
    """Its mean HD95 gets better when a lesion is missed altogether."""
    p = torch.cat([drawn(row) for row in (EMPTY, EMPTY, FALSE_PIXEL)])
    t = torch.cat([drawn(row) for row in (EMPTY, LESION, LESION)])
    assert monai(p, t, None, (1, 1))[:2].tolist() == [
        pytest.approx(math.nan, nan_ok=True),
        math.inf,
    ]
    assert monai(p, t, 95, (1, 1))[:2].isnan().all()
    metric = HausdorffDistanceMetric(include_background=True, percentile=95)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metric(p[:, None].float(), t[:, None].float())
    assert metric.aggregate().item() == pytest.approx(0.8 * math.sqrt(13))
    assert hausdorff(p, t, percentile=95).tolist() == pytest.approx(
        [0, math.sqrt(52), 0.8 * math.sqrt(13)]
    )
    # Its percentile 0 is the maximum, and its 100 is not its None: nan where a mask is empty.
    assert monai(p[2:], t[2:], 0, (1, 1)).tolist() == [pytest.approx(math.sqrt(13))]
    assert monai(p[1:2], t[1:2], 100, (1, 1)).isnan().all()


def test_where_torchmetrics_differs() -> None:
    """It stops at two empty masks, and on images that are not square it is wrong or stops."""

    def theirs(p: Tensor, t: Tensor) -> float:
        p, t = p[:, None].int(), t[:, None].int()
        return hausdorff_distance(p, t, num_classes=1, include_background=True).item()

    with pytest.raises(RuntimeError, match="numel"):
        theirs(drawn(EMPTY), drawn(EMPTY))
    # 4 rows, 9 columns; columns 1, 2 and 6, 7 in rows 1, 2: every distance is 4 or 5.
    p, t = torch.zeros(2, 1, 4, 9)
    p[:, 1:3, 1:3] = 1
    t[:, 1:3, 6:8] = 1
    assert hausdorff(p, t).tolist() == [5]
    assert theirs(p, t) == pytest.approx(math.sqrt(53))
    # 9 rows, 4 columns; from row 1 to row 7.
    p, t = torch.zeros(2, 1, 9, 4)
    p[:, 1, 1] = t[:, 7, 1] = 1
    assert hausdorff(p, t).tolist() == [6]
    with pytest.raises(IndexError):
        theirs(p, t)
