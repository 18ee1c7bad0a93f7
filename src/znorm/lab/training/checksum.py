"""A number for the content of a batch, the same on every device."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

__all__ = ["checksum"]

_MULTIPLIER = 0x9E3779B97F4A7C15
_ODD = 0x2545F4914F6CDD1D  # of Marsaglia's xorshift generators, by Vigna (2016)


def checksum(images: Tensor, targets: Tensor) -> Tensor:
    """64 bits that depend on each pixel and target, and on its place in the batch.

    Integer sums wrap around and come out the same in any order, so that a GPU need not be waited
    for, and agrees with a CPU to the bit. It tells batches apart; it is no protection from anybody.

    Parameters
    ----------
    images : Tensor of shape (N, ...), uint8
    targets : Tensor of shape (N, ...)
        int64 labels, or uint8 masks.

    Returns
    -------
    Tensor without dims, int64

    Examples
    --------
    >>> images, labels = torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1])
    >>> checksum(images, labels) == checksum(images, labels.flip(0))
    tensor(False)
    """
    return _mixed(_sum(images), _ODD) + _sum(targets)


def _sum(part: Tensor) -> Tensor:
    rows = part.contiguous().reshape(len(part), -1).view(torch.uint8)
    if rows.shape[1] % 8:
        rows = torch.nn.functional.pad(rows, (0, 8 - rows.shape[1] % 8))
    words = rows.contiguous().view(torch.int64)
    each = _mixed(words, _odd(words.shape[1], part.device)).sum(1)
    # Mixed with its place before the sum over images: two cannot change places, nor one be added.
    weights = _odd(len(part), part.device)
    return _mixed(each + weights, weights * _ODD).sum()


def _mixed(words: Tensor, weights: Tensor | int) -> Tensor:
    """Words that no longer add up: a sum of plain products would let many changes cancel."""
    words = words * weights
    words = (words ^ (words >> 32)) * _ODD
    return words ^ (words >> 29)


@cache
def _weights(size: int) -> Tensor:
    """Odd numbers that look random: a change of one word always shows."""
    with np.errstate(over="ignore"):
        mixed = np.arange(1, size + 1, dtype=np.uint64) * np.uint64(_MULTIPLIER)
        mixed ^= mixed >> np.uint64(29)
        mixed *= np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(32)
    return torch.from_numpy((mixed | np.uint64(1)).view(np.int64))


@cache
def _odd(size: int, device: torch.device) -> Tensor:
    return _weights(size).to(device)
