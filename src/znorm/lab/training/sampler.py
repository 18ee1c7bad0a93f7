"""Which images a batch holds, and how each is augmented: pure functions of seed, epoch and index.

Nothing here has a state, so that a run that was killed goes on with the very batches that it would
have seen.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["AUGMENTATIONS", "augment_", "batches", "order"]

AUGMENTATIONS = ("none", "dihedral")

# Each turn as three steps that are taken or not: transpose, mirror left to right, upend. Number
# k + 4 f is k quarter turns counter-clockwise, then a mirror if f.
_STEPS = torch.tensor(
    [
        [False, False, False],
        [True, False, True],
        [False, True, True],
        [True, True, False],
        [False, True, False],
        [True, True, True],
        [False, False, True],
        [True, False, False],
    ]
)

Words = npt.NDArray[np.uint64]


def order(seed: int, epoch: int, size: int) -> Tensor:
    """A permutation of ``range(size)``: f(seed, epoch)."""
    key = hashlib.sha256(f"order {seed} {epoch}".encode()).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(key[:16], "little")))
    return torch.from_numpy(generator.permutation(size))


def batches(seed: int, epoch: int, size: int, batch_size: int) -> list[Tensor]:
    """The image indices of each batch of an epoch.

    The last batch is what remains. A remainder of one image is left out, since batch normalization
    cannot train on a single value a channel.
    """
    split = list(order(seed, epoch, size).split(batch_size))
    if len(split) > 1 and len(split[-1]) == 1:
        split.pop()
    return split


def _mix(words: Words) -> Words:
    """The finalizer of SplitMix64 (Steele, Lea and Flood 2014): each bit depends on every bit."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def draws(seed: int, epoch: int, index: Tensor) -> Words:
    """64 random bits for each image: f(seed, epoch, index)."""
    key = hashlib.sha256(f"augment {seed} {epoch}".encode()).digest()
    start = np.uint64(int.from_bytes(key[:8], "little"))
    step = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        return _mix(start + (index.numpy().astype(np.uint64) + np.uint64(1)) * step)


def augment_(images: Tensor, kind: str, seed: int, epoch: int, index: Tensor) -> None:
    """Augment a batch in place.

    Parameters
    ----------
    images : Tensor of shape (N, C, H, H)
    kind : "none" or "dihedral"
        The latter: one of the four quarter turns, with or without a flip, each equally likely.
    seed, epoch : int
    index : Tensor of shape (N,), int64
        The images' places in the data set.
    """
    if kind == "none":
        return
    choice = torch.from_numpy((draws(seed, epoch, index) & np.uint64(7)).astype(np.int64))
    # On the whole batch, since eight small groups take three times as long.
    transposed, mirrored, upended = _STEPS[choice].T[:, :, None, None, None]
    turned = torch.where(transposed, images.transpose(2, 3), images)
    turned = torch.where(mirrored, turned.flip(3), turned)
    torch.where(upended, turned.flip(2), turned, out=images)
