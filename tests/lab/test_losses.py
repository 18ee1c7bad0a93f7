from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from znorm.lab.errors import ConfigurationError
from znorm.lab.losses import LOSSES, dice_cross_entropy, focal_tversky, tversky
from znorm.lab.registry import lookup

MASK_LOSSES = ["tversky", "dice_cross_entropy", "focal_tversky"]


def sample(seed: int = 0, size: tuple[int, int, int] = (3, 5, 4)) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    n, h, w = size
    logits = 3 * torch.randn(n, 1, h, w, generator=draw, dtype=torch.float64)
    return logits, torch.rand(n, h, w, generator=draw) < 0.3


def counts(logits: Tensor, masks: Tensor) -> tuple[float, float, float]:
    """Soft TP, FP and FN, pixel by pixel in Python floats."""
    tp = fp = fn = 0.0
    for x, truth in zip(logits.flatten().tolist(), masks.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-x))
        tp += p * truth
        fp += p * (1 - truth)
        fn += (1 - p) * truth
    return tp, fp, fn


def written_out(name: str, logits: Tensor, masks: Tensor) -> float:
    tp, fp, fn = counts(logits, masks)
    if name == "dice_cross_entropy":
        pairs = zip(logits.flatten().tolist(), masks.flatten().tolist(), strict=True)
        entropy = [math.log1p(math.exp(-x if truth else x)) for x, truth in pairs]
        dice = 1 - (2 * tp + 2) / (2 * tp + fp + fn + 2)
        return dice + math.fsum(entropy) / len(entropy)
    loss = 1 - (tp + 1) / (tp + 0.3 * fp + 0.7 * fn + 1)
    return loss**0.75 if name == "focal_tversky" else loss


@pytest.mark.parametrize("name", MASK_LOSSES)
@pytest.mark.parametrize("seed", range(3))
def test_is_the_formula_written_out(name: str, seed: int) -> None:
    logits, masks = sample(seed)
    assert float(LOSSES[name](logits, masks)) == pytest.approx(
        written_out(name, logits, masks), rel=1e-12
    )


def test_cross_entropy_is_the_formula_written_out() -> None:
    logits = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]], dtype=torch.float64)
    labels = torch.tensor([2, 0])
    expected = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        expected += math.log(sum(math.exp(x) for x in row)) - row[label]
    loss = LOSSES["cross_entropy"](logits, labels)
    assert float(loss) == pytest.approx(expected / 2, rel=1e-14)


@pytest.mark.parametrize("name", MASK_LOSSES)
@pytest.mark.parametrize("kind", [torch.uint8, torch.float32, torch.float64, torch.int64])
def test_masks_of_any_type(name: str, kind: torch.dtype) -> None:
    logits, masks = sample()
    assert torch.equal(LOSSES[name](logits, masks.to(kind)), LOSSES[name](logits, masks))


def test_false_negatives_weigh_more_than_false_positives() -> None:
    found, empty = torch.full((1, 1, 4, 4), 20.0), torch.full((1, 1, 4, 4), -20.0)
    all_, none = torch.ones(1, 4, 4), torch.zeros(1, 4, 4)
    assert float(tversky(found, none)) == pytest.approx(0.3 * 16 / (0.3 * 16 + 1))
    assert float(tversky(empty, all_)) == pytest.approx(0.7 * 16 / (0.7 * 16 + 1))
    assert float(tversky(empty, none)) == pytest.approx(0, abs=1e-7)
    assert float(tversky(found, all_)) == pytest.approx(0, abs=1e-7)


def test_agrees_with_monai() -> None:
    losses = pytest.importorskip("monai.losses")
    logits, masks = sample()
    truth = masks[:, None].to(logits.dtype)
    # MONAI's defaults are the mean of each image's loss, and a smoothing of 1e-5.
    theirs = losses.TverskyLoss(
        sigmoid=True, alpha=0.3, beta=0.7, smooth_nr=1, smooth_dr=1, batch=True
    )(logits, truth)
    torch.testing.assert_close(tversky(logits, masks), theirs, rtol=1e-12, atol=0)
    # A smoothing of 1 in the Tversky index is one of 2 in Dice, whose counts are doubled.
    theirs = losses.DiceCELoss(sigmoid=True, smooth_nr=2, smooth_dr=2, batch=True)(logits, truth)
    torch.testing.assert_close(dice_cross_entropy(logits, masks), theirs, rtol=1e-12, atol=0)
    each = losses.TverskyLoss(sigmoid=True, alpha=0.3, beta=0.7, smooth_nr=1, smooth_dr=1)
    assert abs(float(each(logits, truth)) - float(tversky(logits, masks))) > 1e-3


@pytest.mark.parametrize("name", MASK_LOSSES)
def test_gradients(name: str) -> None:
    logits, masks = sample()
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, masks), (logits.requires_grad_(),))


def test_gradients_of_cross_entropy() -> None:
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 2, 1, 1])
    assert torch.autograd.gradcheck(lambda x: LOSSES["cross_entropy"](x, labels), (logits,))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_is_computed_in_float32_at_least(name: str, kind: torch.dtype) -> None:
    # As many pixels as would stop a sum in half precision.
    logits, targets = sample(size=(4, 128, 128))
    logits = logits.to(kind)
    if name == "cross_entropy":
        logits, targets = logits.reshape(-1, 2), targets.reshape(-1)[::2].long()
    exact = LOSSES[name](logits.double(), targets)
    assert exact.dtype == torch.float64
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = LOSSES[name](logits, targets)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", MASK_LOSSES)
@pytest.mark.parametrize("value", [-200.0, 200.0, 0.0])
@pytest.mark.parametrize("truth", [0, 1])
def test_extreme_logits_leave_finite_numbers(name: str, value: float, truth: int) -> None:
    logits = torch.full((2, 1, 3, 3), value, requires_grad=True)
    loss = LOSSES[name](logits, torch.full((2, 3, 3), truth))
    loss.backward()
    assert loss.isfinite()
    assert loss >= 0
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_small_losses_keep_their_digits() -> None:
    # One less a quotient near one would round to zero, or below it.
    logits = torch.full((1, 1, 1, 1), 30.0)
    masks = torch.ones(1, 1, 1)
    expected = 0.7 * math.exp(-30) / 2
    assert float(tversky(logits, masks)) == pytest.approx(expected, rel=1e-6)
    assert float(focal_tversky(logits, masks)) == pytest.approx(expected**0.75, rel=1e-5)


@pytest.mark.parametrize("name", MASK_LOSSES)
@pytest.mark.parametrize(
    ("logits", "masks"),
    [((2, 4, 4), (2, 4, 4)), ((2, 2, 4, 4), (2, 4, 5)), ((2, 1, 4, 4), (2, 1, 4, 4))],
)
def test_other_shapes_are_refused(
    name: str, logits: tuple[int, ...], masks: tuple[int, ...]
) -> None:
    with pytest.raises(ConfigurationError, match=r"takes logits \(N, 1, H, W\) or .* beside"):
        LOSSES[name](torch.zeros(logits), torch.zeros(masks))


def _of_classes() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 6, 5, generator=generator, dtype=torch.float64) * 3
    masks = torch.randint(0, 4, (3, 6, 5), generator=generator, dtype=torch.uint8)
    return logits, masks


def test_losses_of_several_classes_are_monais() -> None:
    from monai.losses import DiceLoss, TverskyLoss

    logits, masks = _of_classes()
    one_hot = torch.nn.functional.one_hot(masks.long(), 4).permute(0, 3, 1, 2).double()
    common = {"softmax": True, "include_background": False, "batch": True}
    index = TverskyLoss(**common, alpha=0.3, beta=0.7, smooth_nr=1, smooth_dr=1)
    expected = float(index(logits, one_hot))
    assert float(tversky(logits, masks)) == pytest.approx(expected, rel=1e-12)
    assert float(focal_tversky(logits, masks)) == pytest.approx(expected**0.75, rel=1e-12)
    overlap = DiceLoss(**common, smooth_nr=2, smooth_dr=2)(logits, one_hot)
    entropy = torch.nn.functional.cross_entropy(logits, masks.long())
    assert float(dice_cross_entropy(logits, masks)) == pytest.approx(
        float(overlap + entropy), rel=1e-12
    )


def test_gradients_of_several_classes() -> None:
    logits, masks = _of_classes()
    for name in MASK_LOSSES:
        torch.autograd.gradcheck(
            lambda x, name=name: LOSSES[name](x, masks), logits.clone().requires_grad_()
        )


def test_by_name() -> None:
    assert list(LOSSES) == ["cross_entropy", "tversky", "dice_cross_entropy", "focal_tversky"]
    assert lookup("loss", "tversky", LOSSES) is tversky
    with pytest.raises(ConfigurationError, match="unknown loss 'tverski'; did you mean tversky"):
        lookup("loss", "tverski", LOSSES)
