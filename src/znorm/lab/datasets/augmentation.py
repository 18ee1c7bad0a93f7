"""Changes of images that give others of the same kind: pure functions of seed, epoch and index.

Nothing here has a state, so that a run that was killed goes on with the very images that it would
have seen.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["AUGMENTATIONS", "augment_", "augment_as_drawn_", "drawn", "draws"]

AUGMENTATIONS = ("none", "flip", "crop_flip", "dihedral")

# Each turn as three steps that are taken or not: transpose, mirror left to right, upend. Number
# k + 4 f is k quarter turns counter-clockwise, then a mirror if f.
_STEPS = (
    (False, False, False),
    (True, False, True),
    (False, True, True),
    (True, True, False),
    (False, True, False),
    (True, True, True),
    (False, False, True),
    (True, False, False),
)

Words = npt.NDArray[np.uint64]


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


def augment_(
    images: Tensor, kind: str, seed: int, epoch: int, index: Tensor, masks: Tensor | None = None
) -> None:
    """Augment a batch in place, masks as their images.

    Parameters
    ----------
    images : Tensor of shape (N, C, H, W)
    kind : str
        "none"; "flip", left to right for every other image; "crop_flip", that and a shift of up
        to 4 pixels each way with zeros at the edge (the usual for CIFAR); "dihedral", one of the
        four quarter turns, with or without a flip, each equally likely (square images).
    seed, epoch : int
    index : Tensor of shape (N,), int64
        The images' places in the data set.
    masks : Tensor of shape (N, H, W), optional
    """
    augment_as_drawn_(images, kind, drawn(kind, seed, epoch, index), masks)


def drawn(kind: str, seed: int, epoch: int, index: Tensor) -> Tensor:
    """The random numbers of an augmentation for each image, on the CPU: f(seed, epoch, index).

    Returns
    -------
    Tensor of shape (N, numbers), int64
        For :func:`augment_as_drawn_`, on whatever device the images are.
    """
    if kind == "none":
        return torch.zeros(len(index), 0, dtype=torch.int64)
    words = draws(seed, epoch, index)
    if kind == "dihedral":
        return _numbers(words, 0, 8)[:, None]
    mirrored = (_numbers(words, 0, 2) == 1).to(torch.int64)
    if kind == "flip":
        return mirrored[:, None]
    down, across = _numbers(words, 8, 9) - 4, _numbers(words, 24, 9) - 4
    return torch.stack([mirrored, down, across], 1)


def augment_as_drawn_(
    images: Tensor, kind: str, numbers: Tensor, masks: Tensor | None = None
) -> None:
    """Augment a batch in place by what was drawn before: exact, so the same on every device.

    Parameters
    ----------
    images, kind, masks
        As in :func:`augment_`.
    numbers : Tensor of shape (N, numbers), int64
        Of :func:`drawn`, where the images are.
    """
    if kind == "none":
        return
    for batch in [images] if masks is None else [images, masks[:, None]]:
        if kind == "dihedral":
            _turn_(batch, numbers[:, 0])
        else:
            if kind == "crop_flip":
                _shift_(batch, numbers[:, 1], numbers[:, 2])
            mirrored = (numbers[:, 0] == 1)[:, None, None, None]
            batch.copy_(torch.where(mirrored, batch.flip(3), batch))


def _numbers(words: Words, shift: int, count: int) -> Tensor:
    """A number below ``count`` for each image, from 16 of its bits."""
    bits = (words >> np.uint64(shift)) & np.uint64(0xFFFF)
    return torch.from_numpy((bits % np.uint64(count)).astype(np.int64))


def _turn_(batch: Tensor, choice: Tensor) -> None:
    # On the whole batch, since eight small groups take three times as long. A turn's number is
    # compared, not looked up: that would copy the table to the device each time.
    transposed, mirrored, upended = (
        torch.stack([choice == number for number in range(8) if _STEPS[number][step]]).any(0)
        for step in range(3)
    )
    turned = torch.where(_over(transposed), batch.transpose(2, 3), batch)
    turned = torch.where(_over(mirrored), turned.flip(3), turned)
    batch.copy_(torch.where(_over(upended), turned.flip(2), turned))


def _over(flags: Tensor) -> Tensor:
    return flags[:, None, None, None]


def _shift_(batch: Tensor, down: Tensor, across: Tensor) -> None:
    """Each image moved by so many pixels, zeros where nothing is."""
    height, width = batch.shape[2:]
    rows = torch.arange(height, device=batch.device) - down[:, None]
    columns = torch.arange(width, device=batch.device) - across[:, None]
    inside = ((rows >= 0) & (rows < height))[:, None, :, None] & (
        (columns >= 0) & (columns < width)
    )[:, None, None, :]
    numbers = torch.arange(len(batch), device=batch.device)[:, None, None]
    moved = batch.permute(0, 2, 3, 1)[
        numbers, rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None, :]
    ].permute(0, 3, 1, 2)
    batch.copy_(torch.where(inside, moved, torch.zeros_like(moved)))
