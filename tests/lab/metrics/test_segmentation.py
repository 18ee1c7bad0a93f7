"""Counts of pixels and the scores from them: by hand, and against three libraries."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses import TverskyLoss
from monai.metrics import compute_dice, compute_iou
from sklearn.metrics import f1_score, jaccard_score
from torch import Tensor
from torchmetrics.functional.segmentation import dice_score, mean_iou

from znorm.lab.metrics import Counts, count, dice, iou, segmentation, tversky

EMPTY = ("......", "......", "......", "......")
LESION = (".##...", ".##...", "......", "......")
FALSE_PIXEL = (".##...", ".##...", "......", ".....#")
SHIFTED = ("..##..", "..##..", "......", "......")
TOUCHING = ("...##.", "...##.", "......", "......")
FULL = ("######", "######", "######", "######")


def drawn(rows: tuple[str, ...]) -> Tensor:
    return torch.tensor([[[pixel == "#" for pixel in row] for row in rows]])


# prediction, truth -> TP, FP, FN, TN of 24 pixels; Dice, IoU, Tversky with 0.3 and 0.7.
TABLE = {
    "both empty": (EMPTY, EMPTY, (0, 0, 0, 24), (1, 1, 1)),
    "missed lesion": (EMPTY, LESION, (0, 0, 4, 20), (0, 0, 0)),
    "false positive on empty": (LESION, EMPTY, (0, 4, 0, 20), (0, 0, 0)),
    "right": (LESION, LESION, (4, 0, 0, 20), (1, 1, 1)),
    # 2*4 / (2*4 + 1), 4 / 5, 4 / (4 + 0.3)
    "one false pixel": (FALSE_PIXEL, LESION, (4, 1, 0, 19), (8 / 9, 4 / 5, 4 / 4.3)),
    # The same pixel missed: 4 / (4 + 0.7), since a miss weighs more.
    "one missed pixel": (LESION, FALSE_PIXEL, (4, 0, 1, 19), (8 / 9, 4 / 5, 4 / 4.7)),
    # 2*2 / (2*2 + 2 + 2), 2 / 6, 2 / (2 + 0.6 + 1.4)
    "shifted by one": (SHIFTED, LESION, (2, 2, 2, 18), (1 / 2, 1 / 3, 1 / 2)),
    "touching, no overlap": (TOUCHING, LESION, (0, 4, 4, 16), (0, 0, 0)),
    "all of the image": (FULL, FULL, (24, 0, 0, 0), (1, 1, 1)),
    # 8 / (8 + 20), 4 / 24, 4 / (4 + 0.3 * 20)
    "far too much": (FULL, LESION, (4, 20, 0, 0), (2 / 7, 1 / 6, 0.4)),
}


@pytest.mark.parametrize("case", TABLE)
def test_by_hand(case: str) -> None:
    prediction, truth, counts, scores = TABLE[case]
    p, t = drawn(prediction), drawn(truth)
    found = count(p, t)
    assert (int(found.tp), int(found.fp), int(found.fn), int(found.tn)) == counts
    for score, expected in zip((dice, iou, tversky), scores, strict=True):
        value = score(p, t)
        assert value.dtype == torch.float64
        assert value.shape == (1,)
        assert float(value) == pytest.approx(expected, abs=1e-15)


def test_a_weight_of_zero_does_not_make_an_empty_prediction_right() -> None:
    # TP = FP = 0, so the denominator is 0 with beta = 0; just one mask is empty: 0, not 1.
    assert tversky(drawn(EMPTY), drawn(LESION), alpha=1, beta=0).tolist() == [0]
    assert tversky(drawn(LESION), drawn(EMPTY), alpha=0, beta=1).tolist() == [0]
    assert tversky(drawn(EMPTY), drawn(EMPTY), alpha=0, beta=0).tolist() == [1]
    assert tversky(drawn(SHIFTED), drawn(LESION), alpha=0, beta=0).tolist() == [1]


def test_pooled_and_by_group() -> None:
    # Dice by case: 1/2, 1 (both empty), 0.  Pooled: TP 2, FP 2, FN 6 -> 4 / 12.
    p = torch.cat([drawn(SHIFTED), drawn(EMPTY), drawn(EMPTY)])
    t = torch.cat([drawn(LESION), drawn(EMPTY), drawn(LESION)])
    counts = count(p, t)
    assert counts.dice().tolist() == [0.5, 1, 0]
    assert len(counts.pooled()) == 1
    assert counts.pooled().dice().tolist() == [pytest.approx(1 / 3)]
    assert counts.pooled().tn.tolist() == [18 + 24 + 20]
    # Patient "z" comes first and has cases 0 and 2; "a" has the empty one.
    groups = counts.by(["z", "a", "z"])
    assert groups.fn.tolist() == [6, 0]
    assert groups.tn.tolist() == [38, 24]
    assert groups.dice().tolist() == [pytest.approx(1 / 3), 1]
    with pytest.raises(ValueError, match="groups must have an entry for each of 3 cases, found 2"):
        counts.by(["z", "a"])


def test_counts_do_not_overflow() -> None:
    large = torch.tensor([2**61])
    assert Counts(large, large, large, large).pooled().tp.tolist() == [2**61]
    many = Counts(*torch.full((4, 3), 2**33)).pooled()
    assert many.tp.dtype == torch.int64
    assert many.tp.tolist() == [3 * 2**33]


@pytest.mark.parametrize(
    "convert",
    [
        lambda m: m.numpy(),
        lambda m: m.numpy()[:, ::-1].copy()[:, ::-1],  # negative strides
        lambda m: m.to(torch.uint8),
        lambda m: m.to(torch.bfloat16).requires_grad_(),
        lambda m: m.numpy().astype(np.uint16),
        lambda m: np.broadcast_to(m.numpy().astype(np.float32), m.shape),  # read-only
        lambda m: m.transpose(1, 2).contiguous().transpose(1, 2),
    ],
)
def test_kinds_of_masks(convert) -> None:
    p, t = drawn(FALSE_PIXEL), drawn(LESION)
    assert dice(convert(p), t).tolist() == dice(p, t).tolist()
    assert dice(p, convert(t)).tolist() == dice(p, t).tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert iou(convert(p), convert(t)).tolist() == iou(p, t).tolist()


def test_no_cases() -> None:
    assert dice(torch.zeros(0, 4, 4), torch.zeros(0, 4, 4)).shape == (0,)


GOOD = torch.zeros(2, 3, 3)


@pytest.mark.parametrize(
    ("prediction", "target", "error", "message"),
    [
        ([[0]], GOOD, TypeError, "prediction must be a torch tensor or a numpy array, found list"),
        (GOOD, np.array([[["a"]]]), TypeError, "target must hold booleans or numbers, found dtype"),
        (GOOD[0], GOOD, ValueError, r"prediction must have shape \(N, H, W\), found \(3, 3\); add"),
        (GOOD, GOOD[:, None], ValueError, r"target .* found \(2, 1, 3, 3\); take the channel out"),
        (GOOD[:1], GOOD, ValueError, r"one shape, found \(1, 3, 3\) and \(2, 3, 3\)"),
        (GOOD[:, :0], GOOD[:, :0], ValueError, "prediction must have pixels"),
        (GOOD + 0.25, GOOD, ValueError, "prediction must hold only 0 and 1, found 0.25; .* > 0.5"),
        (GOOD, GOOD.numpy() + 255, ValueError, "target must hold only 0 and 1, found 255"),
        (GOOD, GOOD * torch.nan, ValueError, "target must hold only 0 and 1, found nan"),
        (GOOD - 1, GOOD, ValueError, "prediction must hold only 0 and 1, found -1"),
    ],
)
def test_bad_masks(prediction, target, error, message) -> None:
    for score in (dice, iou, tversky, count):
        with pytest.raises(error, match=f"^{score.__name__}: .*{message}"):
            score(prediction, target)


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ({"alpha": -0.1}, ValueError, "alpha must be finite and 0 or more, found -0.1"),
        ({"beta": float("nan")}, ValueError, "beta must be finite"),
        ({"beta": "0.7"}, TypeError, "beta must be a number, found str '0.7'"),
        ({"alpha": True}, TypeError, "alpha must be a number, found bool True"),
    ],
)
def test_bad_weights(weights, error, message) -> None:
    with pytest.raises(error, match=message):
        tversky(GOOD, GOOD, **weights)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Two stacks of masks of one shape, empty and full ones among them."""
    shape = draw(st.integers(1, 4)), draw(st.integers(1, 7)), draw(st.integers(1, 7))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    densities = st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0])

    def stack() -> Tensor:
        density = np.array([draw(densities) for _ in range(shape[0])])[:, None, None]
        return torch.from_numpy(generator.random(shape) < density)

    return stack(), stack()


@settings(deadline=None, max_examples=50)
@given(pairs(), st.floats(0, 2), st.floats(0.01, 2))
def test_against_libraries(masks: tuple[Tensor, Tensor], alpha: float, beta: float) -> None:
    p, t = masks
    counts = count(p, t)
    total = counts.tp + counts.fp + counts.fn + counts.tn
    assert total.tolist() == [p[0].numel()] * len(p)

    # scikit-learn's zero_division=1 is this project's rule for empty masks.
    flat = list(zip(t.flatten(1).numpy(), p.flatten(1).numpy(), strict=True))
    f1 = [f1_score(true, found, zero_division=1) for true, found in flat]
    jaccard = [jaccard_score(true, found, zero_division=1) for true, found in flat]
    np.testing.assert_allclose(dice(p, t), f1, rtol=1e-14)
    np.testing.assert_allclose(iou(p, t), jaccard, rtol=1e-14)
    pooled = f1_score(t.flatten(), p.flatten(), zero_division=1)
    np.testing.assert_allclose(counts.pooled().dice(), [pooled], rtol=1e-14)

    # So is MONAI's ignore_empty=False.  Both libraries compute in float32.
    p1, t1 = p[:, None].float(), t[:, None].float()
    np.testing.assert_allclose(
        dice(p, t), compute_dice(p1, t1, ignore_empty=False)[:, 0], rtol=1e-6
    )
    np.testing.assert_allclose(iou(p, t), compute_iou(p1, t1, ignore_empty=False)[:, 0], rtol=1e-6)

    # torchmetrics gives nan where both are empty, and MONAI's loss without smoothing 0/0.
    some = (p | t).flatten(1).any(1)
    theirs = dice_score(p1.int(), t1.int(), num_classes=1, include_background=True)
    np.testing.assert_allclose(dice(p, t)[some], theirs[some].flatten(), rtol=1e-6)
    assert theirs[~some].isnan().all()
    loss = TverskyLoss(alpha=alpha, beta=beta, smooth_nr=0, smooth_dr=1e-12, reduction="none")
    index = 1 - loss(p1, t1).flatten()
    np.testing.assert_allclose(tversky(p, t, alpha, beta)[some], index[some], atol=1e-6)


@settings(deadline=None, max_examples=50)
@given(pairs())
def test_rules_of_other_libraries_by_name(masks: tuple[Tensor, Tensor]) -> None:
    p, t = masks
    p1, t1 = p[:, None].float(), t[:, None].float()
    close = {"rtol": 1e-6, "equal_nan": True}
    np.testing.assert_allclose(dice(p, t, "monai"), compute_dice(p1, t1)[:, 0], **close)
    np.testing.assert_allclose(iou(p, t, "monai"), compute_iou(p1, t1)[:, 0], **close)
    options = {"num_classes": 1, "include_background": True}
    scores = dice_score(p1.int(), t1.int(), **options).flatten()
    np.testing.assert_allclose(dice(p, t, "torchmetrics"), scores, **close)
    scores = mean_iou(p1.int(), t1.int(), per_class=True, **options).flatten()
    scores[scores == -1] = torch.nan
    np.testing.assert_allclose(iou(p, t, "torchmetrics"), scores, **close)


@pytest.mark.parametrize("score", [dice, iou])
def test_an_unknown_rule_is_named(score) -> None:
    with pytest.raises(ValueError, match=f"{score.__name__}: rule must be .* found 'medpy'"):
        score(GOOD, GOOD, rule="medpy")


def test_where_monai_differs() -> None:
    """By default MONAI's Dice and IoU drop a case whose truth is empty, a false positive too."""
    for library, own in ((compute_dice, dice), (compute_iou, iou)):
        p, t = drawn(LESION), drawn(EMPTY)
        assert library(p[:, None].float(), t[:, None].float()).isnan().all()
        assert own(p, t).tolist() == [0]
        assert library(t[:, None].float(), t[:, None].float()).isnan().all()
        assert own(t, t).tolist() == [1]


def test_pixels_are_counted_alike_on_a_gpu_and_on_a_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, target = (torch.rand(2, 5, 7, 3, generator=generator) > 0.6).unbind()
    target[1] = False
    counts = count(prediction, target)
    right = torch.stack([part.sum() for part in (counts.tp, counts.fp, counts.fn, counts.tn)])
    assert torch.equal(segmentation.pooled_pixels(prediction, target), right)
    assert torch.equal(segmentation._pixels_by_torch(prediction, target), right)
