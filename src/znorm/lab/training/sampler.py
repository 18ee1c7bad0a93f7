"""The images of each batch: pure functions of seed and epoch.

Nothing here has a state, so that a run that was killed goes on with the very batches that it would
have seen.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

__all__ = ["batches", "order"]


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
