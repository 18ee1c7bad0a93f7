"""Sizes of launches, and what each was measured on."""

from __future__ import annotations

from typing import NamedTuple

from znorm.kernels.triton.access import INTERPRETED

__all__ = ["SIZES", "Sizes"]


class Sizes(NamedTuple):
    """The numbers that belong to a card rather than to what is computed.

    Parameters
    ----------
    block : int
        Elements that a program takes at a time.
    warps : int
        Of 32 threads, in a program.
    chunk : int
        Elements that a program takes in all.
    lanes : int
        Partial sums, or tensors, that a program of small numbers takes at a time.
    """

    block: int
    warps: int
    chunk: int
    lanes: int


_TABLE = {
    # One NVIDIA H200, torch 2.11, Triton 3.6. Blocks of 2,048 or 4,096 elements with 4 or 8 warps
    # were slower there, 1.07 to 1.30 of torch's fused Adam. So were groups of tensors as large as
    # the L2 cache, each measured and then updated by launches of its own: 1.73 (ResNet-50, 6
    # groups) and 1.85 (101 M, 24 groups), against 0.96 and 1.09 with all tensors in one launch.
    "gpu": Sizes(block=1024, warps=4, chunk=1 << 14, lanes=128),
    # It pays for each program and each operation, whatever their size.
    "interpreter": Sizes(block=8192, warps=4, chunk=1 << 17, lanes=128),
}
SIZES = _TABLE["interpreter" if INTERPRETED else "gpu"]
