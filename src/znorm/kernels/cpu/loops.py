"""The loops: what is done to a stretch of memory, one element after the other.

Addresses are numbers, offsets and lengths elements. ``dtype`` is a value of `intrinsics.DTYPES`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from znorm.kernels.cpu.intrinsics import at, load, store

__all__ = ["adam", "affine", "clamp", "sgd", "sums", "sums_of_four"]

# Multiplications and additions may become one; NaN and inf keep their meaning.
_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "cache": True,
    "error_model": "numpy",
    "fastmath": {"nsz", "contract"},
}
# Sums may be reordered too, so that they use the whole width of the processor. Nothing else may:
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
    for i in range(length):
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

    ``constants``: beta1, 1 - beta1, beta2, 1 - beta2, step size, 1 / sqrt(1 - beta2^t), eps,
    coupled weight decay, decoupled decay times learning rate, and -1 to maximize. The decay is
    subtracted: ``1 - decay`` rounded to float32 would err the same way at every step.
    """
    beta1, rest1, beta2, rest2 = constants[0], constants[1], constants[2], constants[3]
    step_size, root, eps = constants[4], constants[5], constants[6]
    coupled, decay = constants[7], constants[8]
    scale = scale * constants[9]
    p = at(parameter, start, dtype)
    g = at(gradient, start, dtype)
    m = at(exp_avg, start, dtype)
    v = at(exp_avg_sq, start, dtype)
    for i in range(length):
        w = load(p, i)
        x = ((load(g, i) - high) - low) * scale + coupled * w
        first = beta1 * load(m, i) + rest1 * x
        second = beta2 * load(v, i) + rest2 * x * x
        store(m, i, first)
        store(v, i, second)
        store(p, i, (w - decay * w) - step_size * first / (np.sqrt(second) * root + eps))


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
    if shared == 0:  # no momentum: no buffer either
        for i in range(length):
            w = load(p, i)
            x = ((load(g, i) - high) - low) * scale + decay * w
            store(p, i, w - rate * x)
        return
    b = at(buffer, start, dtype)
    for i in range(length):
        w = load(p, i)
        x = ((load(g, i) - high) - low) * scale + decay * w
        held = momentum * load(b, i) + taken * x
        store(b, i, held)
        store(p, i, w - rate * (own * x + shared * held))
