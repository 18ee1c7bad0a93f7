"""The loops: what is done to a stretch of memory, one element after the other.

Addresses are numbers, offsets and lengths elements. ``dtype`` is a value of `intrinsics.DTYPES`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from znorm.kernels.cpu.intrinsics import at, load, store
from znorm.kernels.cpu.lanes import lanes_of, load_lanes, multiply_add, root, store_lanes

__all__ = ["adam", "affine", "clamp", "sgd", "sums", "sums_of_four"]

# Parts of what `drivers` and `entry` compile and keep on disk.
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
        wide, held = np.float64(x), np.float64(y)
        total += wide
        square += wide * wide
        dot += wide * held
        after += held * held
        changed += 1.0 if x > bound or x < -bound else 0.0
    return total, square, dot, after, changed


@njit(**_OPTIONS)
def adam(
    parameter, gradient, exp_avg, exp_avg_sq, start, length, high, low, scale, constants, dtype
):
    """One step of Adam on ``((g - high) - low) * scale``; the gradient is not written.

    The averages and the decay are rounded as in torch's fused step, so that the two stay together
    over a training.

    ``constants``: 1 - beta1, beta2, 1 - beta2, step size times r, eps times r, coupled weight
    decay, what the weight is multiplied by first, and -1 to maximize. r is sqrt(1 - beta2^t):
    multiplied into both sides of the fraction, it costs nothing.
    """
    # Read once: for all that LLVM knows, the constants could lie where a loop writes.
    rest1, beta2, rest2 = constants[0], constants[1], constants[2]
    size, eps, coupled, shrink = constants[3], constants[4], constants[5], constants[6]
    scale = scale * constants[7]
    p = at(parameter, start, dtype)
    g = at(gradient, start, dtype)
    m = at(exp_avg, start, dtype)
    v = at(exp_avg_sq, start, dtype)
    lanes = lanes_of(dtype)
    whole = length - length % lanes
    for i in range(0, whole, lanes):
        w = load_lanes(p, i)
        x = _taken(load_lanes(g, i), w, high, low, scale, coupled)
        first, second = _averages(x, load_lanes(m, i), load_lanes(v, i), rest1, beta2, rest2)
        store_lanes(m, i, first)
        store_lanes(v, i, second)
        store_lanes(p, i, _stepped(w, first, second, size, eps, shrink))
    for i in range(whole, length):
        w = load(p, i)
        x = _taken(load(g, i), w, high, low, scale, coupled)
        first, second = _averages(x, load(m, i), load(v, i), rest1, beta2, rest2)
        store(m, i, first)
        store(v, i, second)
        store(p, i, _stepped(w, first, second, size, eps, shrink))


@njit(**_OPTIONS)
def _taken(g, w, high, low, scale, decay):
    """The gradient as the update takes it: transformed, with the coupled decay of its weight."""
    return multiply_add(w, decay, ((g - high) - low) * scale)


@njit(**_OPTIONS)
def _averages(x, first, second, rest1, beta2, rest2):
    return multiply_add(x - first, rest1, first), multiply_add(rest2 * x, x, beta2 * second)


@njit(**_OPTIONS)
def _stepped(w, first, second, size, eps, shrink):
    return shrink * w - size * first / (root(second) + eps)


@njit(**_OPTIONS)
def sgd(parameter, gradient, buffer, start, length, high, low, scale, constants, dtype):
    """One step of SGD on ``((g - high) - low) * scale``; the gradient is not written.

    ``constants``: learning rate, weight decay, momentum, what the gradient counts in the buffer,
    what the gradient counts in the update beside the buffer, what the buffer counts there, and -1
    to maximize.
    """
    rate, decay, momentum, taken = constants[0], constants[1], constants[2], constants[3]
    own, shared = constants[4], constants[5]
    scale = scale * constants[6]
    p = at(parameter, start, dtype)
    g = at(gradient, start, dtype)
    lanes = lanes_of(dtype)
    whole = length - length % lanes
    if shared == 0:  # no momentum: no buffer either
        for i in range(0, whole, lanes):
            w = load_lanes(p, i)
            x = _taken(load_lanes(g, i), w, high, low, scale, decay)
            store_lanes(p, i, w - rate * x)
        for i in range(whole, length):
            w = load(p, i)
            x = _taken(load(g, i), w, high, low, scale, decay)
            store(p, i, w - rate * x)
        return
    b = at(buffer, start, dtype)
    for i in range(0, whole, lanes):
        w = load_lanes(p, i)
        x = _taken(load_lanes(g, i), w, high, low, scale, decay)
        held = multiply_add(load_lanes(b, i), momentum, taken * x)
        store_lanes(b, i, held)
        store_lanes(p, i, w - rate * multiply_add(held, shared, own * x))
    for i in range(whole, length):
        w = load(p, i)
        x = _taken(load(g, i), w, high, low, scale, decay)
        held = multiply_add(load(b, i), momentum, taken * x)
        store(b, i, held)
        store(p, i, w - rate * multiply_add(held, shared, own * x))
