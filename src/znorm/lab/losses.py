"""Losses by name: logits and labels in, one number out.

All compute in float32 or wider, whatever the logits are in, and average or sum over the whole
batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from znorm.lab.errors import ConfigurationError

__all__ = ["LOSSES", "Loss", "cross_entropy", "dice_cross_entropy", "focal_tversky", "tversky"]

Loss = Callable[[Tensor, Tensor], Tensor]

# The paper states no loss; these are the common choice for the LGG slices.
FALSE_POSITIVES = 0.3
FALSE_NEGATIVES = 0.7
SMOOTHING = 1.0
# Abraham and Khan raise to 1/gamma and use gamma = 4/3.
GAMMA = 0.75


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean negative log-likelihood of the labels.

    Parameters
    ----------
    logits : Tensor of shape (N, classes)
    labels : Tensor of shape (N,), int64

    Examples
    --------
    >>> import torch
    >>> cross_entropy(torch.zeros(1, 2), torch.tensor([0]))
    tensor(0.6931)
    """
    return F.cross_entropy(_wide(logits), labels)


def tversky(logits: Tensor, masks: Tensor) -> Tensor:
    """One less the Tversky index of the whole batch.

    False positives weigh 0.3, false negatives 0.7. With TP, FP and FN summed over probabilities,
    and s = 1: ``1 - (TP + s) / (TP + 0.3 FP + 0.7 FN + s)``.

    Parameters
    ----------
    logits : Tensor of shape (N, 1, H, W), or (N, K, H, W)
    masks : Tensor of shape (N, H, W)
        0 and 1, of any type; with K channels the number of a class, 0 for none.

    Raises
    ------
    ConfigurationError
        For other shapes.

    Notes
    -----
    Salehi, Erdogmus and Gholipour, "Tversky Loss Function for Image Segmentation Using 3D Fully
    Convolutional Deep Networks", MLMI 2017. The batch is one image here, so that a slice without
    tumour weighs by its false positives alone.

    Examples
    --------
    A pixel that is surely found, and one that is surely missed:

    >>> import torch
    >>> tversky(torch.tensor([[[[50.0, -50.0]]]]), torch.ones(1, 1, 2))
    tensor(0.2593)
    """
    return _tversky(logits, masks, FALSE_POSITIVES, FALSE_NEGATIVES)


def dice_cross_entropy(logits: Tensor, masks: Tensor) -> Tensor:
    """Soft Dice loss plus binary cross-entropy, weighed equally.

    Parameters
    ----------
    logits : Tensor of shape (N, 1, H, W), or (N, K, H, W)
    masks : Tensor of shape (N, H, W)
        0 and 1, of any type; with K channels the number of a class, 0 for none.

    Raises
    ------
    ConfigurationError
        For other shapes.

    Notes
    -----
    The sum of nnU-Net: Isensee, Jaeger, Kohl, Petersen and Maier-Hein, Nature Methods 18, 2021.
    Dice is the Tversky index with 0.5 and 0.5, over the whole batch, ``(2 TP + 2) / (2 TP + FP +
    FN + 2)`` with the smoothing of :func:`tversky`. Cross-entropy is the mean over pixels.

    Examples
    --------
    >>> import torch
    >>> dice_cross_entropy(torch.zeros(1, 1, 1, 2), torch.ones(1, 1, 2))
    tensor(0.8931)
    """
    dice = _tversky(logits, masks, 0.5, 0.5)
    wide = _wide(logits)
    if logits.shape[1] > 1:
        return dice + F.cross_entropy(wide, masks.long())
    return dice + F.binary_cross_entropy_with_logits(wide.squeeze(1), masks.to(wide.dtype))


def focal_tversky(logits: Tensor, masks: Tensor) -> Tensor:
    """The Tversky loss to the power of 0.75, steeper where the index is near one.

    Parameters
    ----------
    logits : Tensor of shape (N, 1, H, W), or (N, K, H, W)
    masks : Tensor of shape (N, H, W)
        0 and 1, of any type; with K channels the number of a class, 0 for none.

    Raises
    ------
    ConfigurationError
        For other shapes.

    Notes
    -----
    Abraham and Khan, "A Novel Focal Tversky Loss Function with Improved Attention U-Net for Lesion
    Segmentation", ISBI 2019: the exponent 1/gamma with gamma = 4/3.

    Examples
    --------
    >>> import torch
    >>> focal_tversky(torch.tensor([[[[50.0, -50.0]]]]), torch.ones(1, 1, 2))
    tensor(0.3633)
    """
    loss = _tversky(logits, masks, FALSE_POSITIVES, FALSE_NEGATIVES)
    # The slope at exactly zero is infinite, and infinity times zero is not a number.
    return loss.clamp_min(torch.finfo(loss.dtype).tiny) ** GAMMA


LOSSES: Mapping[str, Loss] = {
    "cross_entropy": cross_entropy,
    "tversky": tversky,
    "dice_cross_entropy": dice_cross_entropy,
    "focal_tversky": focal_tversky,
}


def _tversky(logits: Tensor, masks: Tensor, positives: float, negatives: float) -> Tensor:
    """The mean over the classes that are marked where there are several, by softmax."""
    if logits.ndim != 4 or logits[:, 0].shape != masks.shape:
        raise ConfigurationError(
            "this loss takes logits (N, 1, H, W) or (N, K, H, W) beside masks (N, H, W), "
            f"found {tuple(logits.shape)} and {tuple(masks.shape)}"
        )
    wide = _wide(logits)
    if wide.shape[1] == 1:
        wide = wide.squeeze(1)
        # sigmoid(-x) keeps the digits that 1 - sigmoid(x) loses where x is large.
        return _less_the_index(
            wide.sigmoid(), (-wide).sigmoid(), masks.to(wide.dtype), positives, negatives
        )
    logs = wide.log_softmax(1)
    losses = [
        _less_the_index(
            logs[:, number].exp(),
            -logs[:, number].expm1(),
            (masks == number).to(wide.dtype),
            positives,
            negatives,
        )
        for number in range(1, wide.shape[1])
    ]
    return torch.stack(losses).mean()


def _less_the_index(
    predicted: Tensor, missed: Tensor, truth: Tensor, positives: float, negatives: float
) -> Tensor:
    hits = (predicted * truth).sum()
    errors = positives * (predicted * (1 - truth)).sum() + negatives * (missed * truth).sum()
    # One less the index, written without a difference: never negative, exact where it is small.
    return errors / (hits + errors + SMOOTHING)


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
