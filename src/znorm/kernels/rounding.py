"""Stochastic rounding: up or down at random, so that the mean of what is stored is right.

bfloat16 keeps 8 bits. An update smaller than 1/512 of a weight is lost when rounded to nearest, at
every step; rounded at random it arrives with the probability that it deserves.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["store_"]


def store_(target: Tensor, source: Tensor) -> None:
    """Write ``source`` to ``target``, bfloat16 rounded stochastically, wider types as they are.

    Random bits come from the device's default generator: ``torch.manual_seed`` repeats them.

    Parameters
    ----------
    target : Tensor
        Written; bfloat16 or the dtype of ``source``.
    source : Tensor
        float32 where ``target`` is bfloat16; NaN and inf stay what they are.

    References
    ----------
    Zamirai et al., "Revisiting BFloat16 Training", arXiv 2010.06192.
    """
    if target.dtype != torch.bfloat16:
        target.copy_(source)
        return
    bits = source.view(torch.int32)
    # Random lower halves carry into the upper half as often as the lower half is large.
    noise = torch.randint_like(bits, 1 << 16)
    rounded = (bits + noise).bitwise_and_(-(1 << 16)).view(torch.float32)
    target.copy_(torch.where(torch.isfinite(source), rounded, source))
