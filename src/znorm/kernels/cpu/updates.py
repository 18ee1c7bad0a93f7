"""Update rules on a CPU: for each, its loop over memory and what is computed once a step.

To add one: its loop, a function of the form of `_advance_adam`, a number in `update`, and a line in
`RULES`. The rule itself, as data, is beside its optimizer in `znorm.optim`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from znorm.kernels.cpu.intrinsics import at, load, pointer_to, store
from znorm.kernels.cpu.vector import lanes_of, load_lanes, multiply_add, root, store_lanes

__all__ = ["RULES", "Rule", "update"]

# Parts of what `driver` and `entry` compile and keep on disk.
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
_KEPT = {**_OPTIONS, "cache": True}

# After `driver.MEASURE` and `driver.AFFINE`.
_ADAM, _SGD = 2, 3


# Part of the driver's loop over tensors: a call with whole tables costs as much as a small tensor.
@njit(**_OPTIONS, forceinline=True)
def update(kind, addresses, tensor, start, length, high, low, scale, constants, dtype):
    """One step of the rule of that number for a stretch of a tensor; the gradient is not written.

    Parameters
    ----------
    kind : int
        Of `RULES`.
    addresses : int64 array of shape (4, tensors)
        Of parameters, gradients, and the two states.
    tensor, start, length : int
        Which stretch, in elements.
    high, low, scale : float32
        The gradient is taken as ``((g - high) - low) * scale``.
    constants : float32 array of shape (tensors, 8)
        As the rule's ``advance`` has written them.
    dtype
        A value of `intrinsics.DTYPES`.
    """
    if kind == _ADAM:
        _adam(
            addresses[0, tensor],
            addresses[1, tensor],
            addresses[2, tensor],
            addresses[3, tensor],
            start,
            length,
            high,
            low,
            scale,
            constants[tensor],
            dtype,
        )
    elif kind == _SGD:
        _sgd(
            addresses[0, tensor],
            addresses[1, tensor],
            addresses[2, tensor],
            start,
            length,
            high,
            low,
            scale,
            constants[tensor],
            dtype,
        )


@njit(**_OPTIONS)
def _taken(g, w, high, low, scale, decay):
    """The gradient as the update takes it: transformed, with the coupled decay of its weight."""
    return multiply_add(w, decay, ((g - high) - low) * scale)


@njit(**_OPTIONS)
def _adam(
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
def _averages(x, first, second, rest1, beta2, rest2):
    return multiply_add(x - first, rest1, first), multiply_add(rest2 * x, x, beta2 * second)


@njit(**_OPTIONS)
def _stepped(w, first, second, size, eps, shrink):
    return shrink * w - size * first / (root(second) + eps)


@njit(**_KEPT)
def _advance_adam(addresses, steps, initialized, groups, hyperparameters, constants):
    """Count a step; `hyperparameters`: see `znorm.optim.adam`; `constants`: see `_adam`."""
    for tensor in range(len(steps)):
        if addresses[1, tensor] == 0:
            continue
        counter = pointer_to(steps[tensor], np.float32(0))
        counter[0] += np.float32(1)
        t = np.float64(counter[0])
        group = hyperparameters[groups[tensor]]
        lr, beta1, beta2, eps, decay = group[0], group[1], group[2], group[3], group[4]
        r = np.sqrt(1 - beta2**t)
        constants[tensor, 0] = 1 - beta1
        constants[tensor, 1] = beta2
        constants[tensor, 2] = 1 - beta2
        constants[tensor, 3] = lr / (1 - beta1**t) * r
        constants[tensor, 4] = eps * r
        constants[tensor, 5] = 0.0 if group[5] != 0 else decay
        constants[tensor, 6] = 1 - lr * decay if group[5] != 0 else 1.0
        constants[tensor, 7] = -1.0 if group[6] != 0 else 1.0


@njit(**_OPTIONS)
def _sgd(parameter, gradient, buffer, start, length, high, low, scale, constants, dtype):
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
        kept = multiply_add(load_lanes(b, i), momentum, taken * x)
        store_lanes(b, i, kept)
        store_lanes(p, i, w - rate * multiply_add(kept, shared, own * x))
    for i in range(whole, length):
        w = load(p, i)
        x = _taken(load(g, i), w, high, low, scale, decay)
        kept = multiply_add(load(b, i), momentum, taken * x)
        store(b, i, kept)
        store(p, i, w - rate * multiply_add(kept, shared, own * x))


@njit(**_KEPT)
def _advance_sgd(addresses, steps, initialized, groups, hyperparameters, constants):
    """`hyperparameters`: see `znorm.optim.sgd`; `constants`: see `_sgd`."""
    for tensor in range(len(initialized)):
        if addresses[1, tensor] == 0:
            continue
        group = hyperparameters[groups[tensor]]
        momentum = group[1]
        nesterov = group[4] != 0
        constants[tensor, 0] = group[0]
        constants[tensor, 1] = group[3]
        # The first step sets the buffer to the gradient.
        constants[tensor, 2] = momentum if initialized[tensor] != 0 else 0.0
        constants[tensor, 3] = 1 - group[2] if initialized[tensor] != 0 else 1.0
        constants[tensor, 4] = 1.0 if momentum == 0 or nesterov else 0.0
        constants[tensor, 5] = 0.0 if momentum == 0 else (momentum if nesterov else 1.0)
        constants[tensor, 6] = -1.0 if group[5] != 0 else 1.0


class Rule(NamedTuple):
    """A rule, as the driver needs it.

    Parameters
    ----------
    kind : int
        By which `update` knows it.
    advance : callable
        ``(addresses, steps, initialized, groups, hyperparameters, constants)``: once a step, before
        `update`, it writes the eight ``constants`` of each tensor that has a gradient. ``steps``
        are the addresses of step counters in float32, ``initialized`` says whether a state was
        filled before, ``groups`` are the rows of ``hyperparameters``, a float64 array.
    """

    kind: int
    advance: Any


RULES = {"adam": Rule(_ADAM, _advance_adam), "sgd": Rule(_SGD, _advance_sgd)}
