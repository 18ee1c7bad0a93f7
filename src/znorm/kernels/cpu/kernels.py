"""Loops over a stretch of memory, one element after the other: sums, an affine map, a clamp.

Addresses are numbers, offsets and lengths elements. ``dtype`` is a value of `intrinsics.DTYPES`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from znorm.kernels.cpu.intrinsics import at, load, store
from znorm.kernels.cpu.vector import lanes_of, load_lanes, store_lanes

__all__ = ["affine", "clamp", "compare", "sums", "sums_of_four"]

# Parts of what `driver` and `entry` compile and keep on disk.
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
# Sums may be reordered, so that they use the whole width of the processor. Nothing else may:
# (g - high) - low would become g - (high + low), and lose what the two are there for.
_SUMS = {**_OPTIONS, "fastmath": {"reassoc", "nsz", "contract"}}


@njit(**_SUMS)
def sums_of_four(address, start, apart, length, shift, dtype):
    """Sums as of `sums`, of four stretches of one length, each ``apart`` from the one before."""
    a = at(address, start, dtype)
    b = at(address, start + apart, dtype)
    c = at(address, start + 2 * apart, dtype)
    d = at(address, start + 3 * apart, dtype)
    s0 = s1 = s2 = s3 = 0.0
    q0 = q1 = q2 = q3 = 0.0
    for i in range(length):
        w = np.float64(load(a, i)) - shift
        x = np.float64(load(b, i)) - shift
        y = np.float64(load(c, i)) - shift
        z = np.float64(load(d, i)) - shift
        s0 += w
        s1 += x
        s2 += y
        s3 += z
        q0 += w * w
        q1 += x * x
        q2 += y * y
        q3 += z * z
    return s0, q0, s1, q1, s2, q2, s3, q3


@njit(**_SUMS)
def sums(address, start, length, shift, dtype):
    """Sum and sum of squares of ``g - shift`` in float64.

    Four stretches at a time: one alone waits for memory most of the time.
    """
    quarter = length // 4
    s0, q0, s1, q1, s2, q2, s3, q3 = sums_of_four(address, start, quarter, quarter, shift, dtype)
    a = at(address, start, dtype)
    for i in range(4 * quarter, length):
        w = np.float64(load(a, i)) - shift
        s0 += w
        q0 += w * w
    return (s0 + s1) + (s2 + s3), (q0 + q1) + (q2 + q3)


@njit(**_OPTIONS)
def affine(address, start, length, high, low, scale, dtype):
    """``g = ((g - high) - low) * scale`` in place, in float32, rounded once."""
    g = at(address, start, dtype)
    lanes = lanes_of(dtype)
    whole = length - length % lanes
    for i in range(0, whole, lanes):
        store_lanes(g, i, ((load_lanes(g, i) - high) - low) * scale)
    for i in range(whole, length):
        store(g, i, ((load(g, i) - high) - low) * scale)


@njit(**_SUMS)
def clamp(address, start, length, bound, dtype):
    """Clamp to ``[-bound, bound]`` in place, and say what was read and written.

    Returns the sums of g, g^2, g * clamped and clamped^2 in float64, and whether any was changed.
    """
    g = at(address, start, dtype)
    total = square = dot = after = changed = 0.0
    for i in range(length):
        x = load(g, i)
        # NaN stays NaN.
        y = bound if x > bound else (-bound if x < -bound else x)
        store(g, i, y)
        wide, clamped = np.float64(x), np.float64(y)
        total += wide
        square += wide * wide
        dot += wide * clamped
        after += clamped * clamped
        changed += 1.0 if x > bound or x < -bound else 0.0
    return total, square, dot, after, changed


@njit(**_SUMS)
def compare(one, other, start, length, dtype):
    """Read a stretch of two lists of numbers; nothing is written.

    Returns the sums of g, g^2, g * h and h^2 in float64, and how many entries differ.
    """
    g = at(one, start, dtype)
    h = at(other, start, dtype)
    total = square = dot = after = changed = 0.0
    for i in range(length):
        x, y = np.float64(load(g, i)), np.float64(load(h, i))
        total += x
        square += x * x
        dot += x * y
        after += y * y
        # NaN is no change of NaN.
        changed += 1.0 if x != y and (x == x or y == y) else 0.0
    return total, square, dot, after, changed
