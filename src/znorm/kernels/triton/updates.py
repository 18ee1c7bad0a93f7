"""Update rules on a GPU: for each, what it does to a block and what is computed once a step.

To add one: its function, a kernel of the form of `_advance_adam`, a number in `update`, and a line
in `RULES`. The rule itself, as data, is beside its optimizer in `znorm.optim`.

Addresses lie in rows: parameters, gradients, the two states, step counters. No argument may be
called ``options``: Triton's launcher has one of that name itself.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from znorm.kernels.triton.access import store

__all__ = ["RULES", "Rule", "update"]

# After `kernels.AFFINE`, which is 0.
_ADAM, _SGD = tl.constexpr(1), tl.constexpr(2)

# A number that changes from launch to launch, and is not worth a kernel of its own.
_NUMBERS = ["tensors"]


@triton.jit
def update(p, x, m, v, place, inside, c, DTYPE: tl.constexpr, KIND: tl.constexpr):
    """One step of the rule of that number for a block of elements.

    ``p``, ``m``, ``v``: where weights and states begin. ``x``: transformed gradients in float32.
    ``place``: the elements, of which those ``inside`` count. ``c``: the tensor's eight constants.
    """
    if KIND == _ADAM:
        _adam(p, x, m, v, place, inside, c, DTYPE)
    elif KIND == _SGD:
        _sgd(p, x, m, place, inside, c, DTYPE)


@triton.jit
def _adam(p, x, m, v, place, inside, c, DTYPE: tl.constexpr):
    w = tl.load(p + place, mask=inside, other=0.0).to(tl.float32)
    first = tl.load(m + place, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(v + place, mask=inside, other=0.0).to(tl.float32)
    rest1, beta2, rest2 = tl.load(c), tl.load(c + 1), tl.load(c + 2)
    x = tl.fma(w, tl.load(c + 5) + tl.zeros_like(w), x * tl.load(c + 7))
    first = tl.fma(x - first, rest1 + tl.zeros_like(w), first)
    second = tl.fma(rest2 * x, x, beta2 * second)
    denominator = tl.sqrt_rn(second) + tl.load(c + 4)
    w = tl.load(c + 6) * w - tl.div_rn(tl.load(c + 3) * first, denominator)
    store(m + place, first, inside, DTYPE)
    store(v + place, second, inside, DTYPE)
    store(p + place, w, inside, DTYPE)


@triton.jit(do_not_specialize=_NUMBERS)
def _advance_adam(
    addresses,
    groups,
    hyperparameters,
    constants,
    initialized,
    found_inf,
    tensors,
    BLOCK: tl.constexpr,
    HAS_FOUND_INF: tl.constexpr,
):
    """Count a step for each tensor with a gradient, and write down its constants.

    ``hyperparameters``: see `znorm.optim.adam`. ``constants``: 1 - beta1, beta2, 1 - beta2,
    step size times r, eps times r, coupled weight decay, what the weight is multiplied by first,
    and -1 to maximize; r is sqrt(1 - beta2^t).
    """
    tensor = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = tensor < tensors
    present = inside & (tl.load(addresses + tensors + tensor, mask=inside, other=0) != 0)
    place = tl.load(addresses + 4 * tensors + tensor, mask=present, other=0)
    counter = place.to(tl.pointer_type(tl.float32))
    if HAS_FOUND_INF:
        present = present & (tl.load(found_inf + tl.zeros_like(tensor)) == 0.0)
    steps = tl.load(counter, mask=present, other=0.0) + 1.0
    tl.store(counter, steps, mask=present)
    t = steps.to(tl.float64)
    o = hyperparameters + 7 * tl.load(groups + tensor, mask=inside, other=0)
    lr = tl.load(o, mask=inside, other=0.0)
    beta1 = tl.load(o + 1, mask=inside, other=0.0)
    beta2 = tl.load(o + 2, mask=inside, other=0.0)
    decay = tl.load(o + 4, mask=inside, other=0.0)
    decoupled = tl.load(o + 5, mask=inside, other=0.0) != 0.0
    r = tl.sqrt(1.0 - _power(beta2, t))
    c = constants + 8 * tensor
    tl.store(c, (1.0 - beta1).to(tl.float32), mask=present)
    tl.store(c + 1, beta2.to(tl.float32), mask=present)
    tl.store(c + 2, (1.0 - beta2).to(tl.float32), mask=present)
    tl.store(c + 3, (lr / (1.0 - _power(beta1, t)) * r).to(tl.float32), mask=present)
    tl.store(c + 4, (tl.load(o + 3, mask=inside, other=0.0) * r).to(tl.float32), mask=present)
    tl.store(c + 5, tl.where(decoupled, 0.0, decay).to(tl.float32), mask=present)
    tl.store(c + 6, tl.where(decoupled, 1.0 - lr * decay, 1.0).to(tl.float32), mask=present)
    maximizes = tl.load(o + 6, mask=inside, other=0.0) != 0.0
    tl.store(c + 7, tl.where(maximizes, -1.0, 1.0).to(tl.float32), mask=present)


@triton.jit
def _power(base, exponent):
    return tl.where(base > 0.0, tl.exp2(exponent * tl.log2(tl.where(base > 0.0, base, 1.0))), 0.0)


@triton.jit
def _sgd(p, x, m, place, inside, c, DTYPE: tl.constexpr):
    w = tl.load(p + place, mask=inside, other=0.0).to(tl.float32)
    rate, decay, momentum, taken = tl.load(c), tl.load(c + 1), tl.load(c + 2), tl.load(c + 3)
    own, shared = tl.load(c + 4), tl.load(c + 5)
    x = tl.fma(w, decay + tl.zeros_like(w), x * tl.load(c + 6))
    if shared != 0:  # else there is no momentum, and no buffer either
        kept = tl.load(m + place, mask=inside, other=0.0).to(tl.float32)
        kept = tl.fma(kept, momentum + tl.zeros_like(w), taken * x)
        store(m + place, kept, inside, DTYPE)
        x = tl.fma(kept, shared + tl.zeros_like(w), own * x)
    store(p + place, w - rate * x, inside, DTYPE)


@triton.jit(do_not_specialize=_NUMBERS)
def _advance_sgd(
    addresses,
    groups,
    hyperparameters,
    constants,
    initialized,
    found_inf,
    tensors,
    BLOCK: tl.constexpr,
    HAS_FOUND_INF: tl.constexpr,
):
    """Write down the constants of each tensor's update, and that its buffer now holds something.

    ``hyperparameters``: see `znorm.optim.sgd`. ``constants``: learning rate, weight decay,
    momentum, what the gradient counts in the buffer, what the gradient counts in the update beside
    the buffer, what the buffer counts there, and -1 to maximize.
    """
    tensor = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = tensor < tensors
    present = inside & (tl.load(addresses + tensors + tensor, mask=inside, other=0) != 0)
    if HAS_FOUND_INF:
        present = present & (tl.load(found_inf + tl.zeros_like(tensor)) == 0.0)
    o = hyperparameters + 6 * tl.load(groups + tensor, mask=inside, other=0)
    momentum = tl.load(o + 1, mask=inside, other=0.0)
    dampening = tl.load(o + 2, mask=inside, other=0.0)
    nesterov = tl.load(o + 4, mask=inside, other=0.0) != 0.0
    # The first step sets the buffer to the gradient.
    later = tl.load(initialized + tensor, mask=inside, other=0) != 0
    tl.store(initialized + tensor, 1, mask=present)
    c = constants + 8 * tensor
    tl.store(c, tl.load(o, mask=inside, other=0.0).to(tl.float32), mask=present)
    tl.store(c + 1, tl.load(o + 3, mask=inside, other=0.0).to(tl.float32), mask=present)
    tl.store(c + 2, tl.where(later, momentum, 0.0).to(tl.float32), mask=present)
    tl.store(c + 3, tl.where(later, 1.0 - dampening, 1.0).to(tl.float32), mask=present)
    alone = tl.where((momentum == 0.0) | nesterov, 1.0, 0.0)
    tl.store(c + 4, alone.to(tl.float32), mask=present)
    shared = tl.where(momentum == 0.0, 0.0, tl.where(nesterov, momentum, 1.0))
    tl.store(c + 5, shared.to(tl.float32), mask=present)
    maximizes = tl.load(o + 5, mask=inside, other=0.0) != 0.0
    tl.store(c + 6, tl.where(maximizes, -1.0, 1.0).to(tl.float32), mask=present)


class Rule(NamedTuple):
    """A rule, as the launches need it.

    Parameters
    ----------
    kind : int
        By which `update` knows it.
    advance : kernel
        Once a step, before `update`, it writes the ``constants`` of each tensor that has a
        gradient, and counts the step.
    """

    kind: int
    advance: Any


RULES = {"adam": Rule(1, _advance_adam), "sgd": Rule(2, _advance_sgd)}
