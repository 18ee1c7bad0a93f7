"""Masks as callers give them: one check for every score of segmentation."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

__all__ = ["Mask", "as_masks", "masks_of"]

Mask: TypeAlias = Tensor | np.ndarray[Any, Any]


def masks_of(logits: Tensor, threshold: float = 0.0) -> Tensor:
    """The masks that a net's outputs stand for.

    Parameters
    ----------
    logits : Tensor of shape (N, K, H, W)
    threshold : float
        Of one channel, the logit above which a pixel is marked; 0 is a probability of one half.

    Returns
    -------
    Tensor of shape (N, H, W)
        Of one channel bool; of several the number of the largest, uint8.

    Examples
    --------
    >>> import torch
    >>> masks_of(torch.tensor([[[[1.0, -1.0]]]]))
    tensor([[[ True, False]]])
    >>> masks_of(torch.tensor([[[[0.0]], [[2.0]], [[1.0]]]]))
    tensor([[[1]]], dtype=torch.uint8)
    """
    if logits.shape[1] == 1:
        return logits[:, 0] > threshold
    return logits.argmax(1).to(torch.uint8)


def as_masks(owner: str, prediction: Mask, target: Mask) -> tuple[Tensor, Tensor]:
    """Both masks as boolean tensors of one shape, on one device.

    Parameters
    ----------
    owner : str
        The function that the user called, for the message.
    prediction, target : Tensor or array of shape (N, H, W)
        Boolean, or of another type that holds only 0 and 1. Masks on two devices are both moved to
        the CPU.

    Raises
    ------
    TypeError
        If one is neither a tensor nor an array of numbers.
    ValueError
        If one has other dims, no pixels, or other values than 0 and 1; if the shapes differ.

    Examples
    --------
    >>> import numpy as np
    >>> as_masks("dice", np.eye(2)[None], np.eye(2, dtype=bool)[None])[0]
    tensor([[[ True, False],
             [False,  True]]])
    """
    first = _as_mask(owner, "prediction", prediction)
    second = _as_mask(owner, "target", target)
    if first.shape != second.shape:
        raise ValueError(
            f"{owner}: prediction and target must have one shape, found {tuple(first.shape)} and "
            f"{tuple(second.shape)}; bring both to the same cases and size"
        )
    if first.device != second.device:
        return first.cpu(), second.cpu()
    return first, second


def _as_mask(owner: str, name: str, value: Mask) -> Tensor:
    if not isinstance(value, Tensor | np.ndarray):
        raise TypeError(
            f"{owner}: {name} must be a torch tensor or a numpy array, found "
            f"{type(value).__name__}; convert it first, as in torch.as_tensor({name})"
        )
    if isinstance(value, np.ndarray) and value.dtype.kind not in "buif":
        raise TypeError(
            f"{owner}: {name} must hold booleans or numbers, found dtype {value.dtype}; convert it "
            f"first, as in {name}.astype(bool)"
        )
    shape = tuple(value.shape)
    if len(shape) != 3:
        advice = {
            2: f"add the dim of the cases, as in {name}[None]",
            4: f"take the channel out, as in {name}[:, 0]",
        }.get(len(shape), "bring it to (cases, height, width)")
        raise ValueError(f"{owner}: {name} must have shape (N, H, W), found {shape}; {advice}")
    if 0 in shape[1:]:
        raise ValueError(f"{owner}: {name} must have pixels, found shape {shape}; check the crop")
    if isinstance(value, np.ndarray):
        # A copy: an array may be read-only or have negative strides, which torch does not take.
        mask = torch.from_numpy(np.array(value, dtype=bool, order="C"))
        wrong = () if value.dtype == bool else value[(value != 0) & (value != 1)][:1].tolist()
    else:
        value = value.detach()
        mask = value.to(torch.bool)
        wrong = () if mask is value else value[(value != 0) & (value != 1)][:1].tolist()
    if wrong:
        raise ValueError(
            f"{owner}: {name} must hold only 0 and 1, found {wrong[0]:g}; make a mask of it first, "
            f"as in {name} > 0.5 for probabilities or {name} > 0 for images of 0 and 255"
        )
    return mask
