"""What runs on the GPU: five small kernels in Triton, each over a whole list of tensors.

Tensors are found by tables of their addresses, as numbers: one launch serves hundreds of them.
Sums are float64, in a fixed order, with no atomics: the same bits on every run. Where a table holds
0 for a gradient, it is missing and nothing of its tensor changes.

``first`` is the number of the first item that a launch is for. Addresses lie in rows: parameters,
gradients, the two states, step counters.

No argument may be called ``options``: Triton's launcher has one of that name itself.
"""

from __future__ import annotations

import os

import triton
import triton.language as tl

__all__ = [
    "ADAM",
    "AFFINE",
    "INTERPRETED",
    "SGD",
    "advance_adam",
    "advance_sgd",
    "finish",
    "measure",
    "merge",
]

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

AFFINE, ADAM, SGD = 0, 1, 2
_INTERPRETED = tl.constexpr(INTERPRETED)
_BFLOAT16 = tl.constexpr(tl.bfloat16)
_AFFINE, _ADAM = tl.constexpr(AFFINE), tl.constexpr(ADAM)

# Numbers that change from launch to launch, and are not worth a kernel of their own each.
_NUMBERS = ["first", "tensors", "units"]


@triton.jit(do_not_specialize=_NUMBERS)
def measure(addresses, items, partial, first, tensors, DTYPE: tl.constexpr, BLOCK: tl.constexpr):
    """Sum and sum of squares of ``g - shift``, the shift being the first element of the unit.

    ``items``: of each its tensor, where it starts, its length, where its unit starts.
    ``partial``: the two sums of each.
    """
    item = first + tl.program_id(0)
    row = items + 4 * item
    address = tl.load(addresses + tensors + tl.load(row))
    start, length, origin = tl.load(row + 1), tl.load(row + 2), tl.load(row + 3)
    total = tl.zeros([BLOCK], tl.float64)
    squares = tl.zeros([BLOCK], tl.float64)
    if address != 0:
        g = address.to(tl.pointer_type(DTYPE))
        shift = tl.load(g + origin).to(tl.float32).to(tl.float64)
        for at in range(0, length, BLOCK):
            place = at + tl.arange(0, BLOCK)
            inside = place < length
            x = tl.load(g + start + place, mask=inside, other=0.0).to(tl.float32).to(tl.float64)
            deviation = tl.where(inside, x - shift, 0.0)
            total += deviation
            squares += deviation * deviation
    tl.store(partial + 2 * item, tl.sum(total))
    tl.store(partial + 2 * item + 1, tl.sum(squares))


@triton.jit(do_not_specialize=_NUMBERS)
def merge(
    addresses,
    rows,
    partial,
    moments,
    given,
    sums,
    row_of_unit,
    z_score,
    scale,
    skip,
    first,
    tensors,
    units,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
    DECIDES: tl.constexpr,
    RECORDS: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_SKIP: tl.constexpr,
):
    """Moments of each unit; if it ``DECIDES``, its coefficients by ZNorm, and the receipt's entry.

    ``rows``: of each unit its tensor, where it starts, its length, its first item, how many items,
    its number in the layout, of which there are ``units``.
    ``moments``: mean and m2 by these numbers. ``given``: see `finish`.
    ``z_score``: eps, center, scale, correction.
    ``sums``: a receipt's, by the rows that ``row_of_unit`` has for the layout's units.
    """
    row = rows + 6 * (first + tl.program_id(0))
    address = tl.load(addresses + tensors + tl.load(row))
    origin, length = tl.load(row + 1), tl.load(row + 2)
    begin, items, number = tl.load(row + 3), tl.load(row + 4), tl.load(row + 5)
    if address != 0:
        totals = tl.zeros([BLOCK], tl.float64)
        squares = tl.zeros([BLOCK], tl.float64)
        for at in range(0, items, BLOCK):
            place = at + tl.arange(0, BLOCK)
            held = partial + 2 * (begin + place)
            totals += tl.load(held, mask=place < items, other=0.0)
            squares += tl.load(held + 1, mask=place < items, other=0.0)
        n = length.to(tl.float64)
        total = tl.sum(totals)
        m2 = tl.sum(squares) - total * (total / n)
        # Rounding alone can make it negative; NaN stays NaN.
        m2 = tl.where(m2 < 0.0, 0.0, m2)
        g = address.to(tl.pointer_type(DTYPE))
        mean = tl.load(g + origin).to(tl.float32).to(tl.float64) + total / n
        tl.store(moments + number, mean)
        tl.store(moments + units + number, m2)
        if DECIDES:
            factor = mean * 0.0 + 1.0
            if HAS_SCALE:
                factor = 1.0 / tl.load(scale).to(tl.float64)
            center, multiplier = _z_score(mean, m2, n, z_score, factor)
            high = center.to(tl.float32)
            tl.store(given + number, high)
            tl.store(given + units + number, (center - high.to(tl.float64)).to(tl.float32))
            tl.store(given + 2 * units + number, multiplier.to(tl.float32))
            if RECORDS:
                counts = n > 0
                if HAS_SKIP:
                    counts = tl.load(skip) == 0
                if counts:
                    entry = sums + 7 * tl.load(row_of_unit + number)
                    _record(entry, mean * factor, m2 * factor * factor, n, z_score)


@triton.jit
def _z_score(mean, m2, n, z_score, factor):
    """ZNorm's formula, as `znorm.ZNorm.decide` has it; tests hold the two equal."""
    eps, centers = tl.load(z_score), tl.load(z_score + 1)
    scales, correction = tl.load(z_score + 2), tl.load(z_score + 3)
    std = tl.sqrt(m2 / tl.maximum(n - correction, 1.0)) * factor
    scale = tl.where(scales != 0.0, factor / (std + eps), factor)
    scale = tl.where((m2 == 0.0) & ((centers != 0.0) | (scales != 0.0)), 0.0, scale)
    # Of all of the tensor, where any of it is not finite: nothing is hidden from torch's guards.
    bad = (mean + m2) * 0.0
    return tl.where(centers != 0.0, mean, 0.0), scale + bad


@triton.jit
def _record(row, mean, m2, n, z_score):
    """Add to a receipt's sums, as `znorm.receipts.Receipt.record` does."""
    center, scale = _z_score(mean, m2, n, z_score, mean * 0.0 + 1.0)
    apart = mean - center
    before = tl.sqrt(m2 + n * mean * mean)
    after = scale * tl.sqrt(m2 + n * apart * apart)
    both = before * after
    cosine = scale * (m2 + n * mean * apart) / tl.where(both == 0.0, 1.0, both)
    cosine = tl.where(both == 0.0, 0.0, tl.where(cosine > 1.0, 1.0, cosine))
    tl.store(row, tl.load(row) + before)
    tl.store(row + 1, tl.load(row + 1) + after)
    tl.store(row + 2, tl.load(row + 2) + mean)
    tl.store(row + 3, tl.load(row + 3) + tl.sqrt(m2 / n))
    tl.store(row + 4, tl.load(row + 4) + cosine)
    tl.store(row + 6, tl.load(row + 6) + 1.0)


@triton.jit(do_not_specialize=_NUMBERS)
def finish(
    addresses,
    items,
    given,
    constants,
    scale,
    skip,
    first,
    tensors,
    units,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
    KIND: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_SKIP: tl.constexpr,
):
    """``g = ((g - high) - low) * scale`` in place, or an update by that, in float32, rounded once.

    ``items``: of each its tensor, where it starts, its length, its unit's number in the layout,
    and where several units lie one after the other the length of each and how far into the first
    of them it starts. A unit of -1: a tensor of which nothing is measured.
    ``given``: high, low and scale of each of the layout's units.
    ``constants``: eight numbers of each tensor, see `advance_adam` and `advance_sgd`.
    """
    # The last first: the end of what `measure` has just read is still in the cache.
    item = first - tl.program_id(0)
    row = items + 6 * item
    tensor, start, length = tl.load(row), tl.load(row + 1), tl.load(row + 2)
    unit, apart, into = tl.load(row + 3), tl.load(row + 4), tl.load(row + 5)
    address = tl.load(addresses + tensors + tensor)
    if HAS_SKIP:
        length = tl.where(tl.load(skip) == 0, length, 0)
    if address != 0:
        g = address.to(tl.pointer_type(DTYPE)) + start
        p = tl.load(addresses + tensor).to(tl.pointer_type(DTYPE)) + start
        m = tl.load(addresses + 2 * tensors + tensor).to(tl.pointer_type(DTYPE)) + start
        v = tl.load(addresses + 3 * tensors + tensor).to(tl.pointer_type(DTYPE)) + start
        c = constants + 8 * tensor
        own = 1.0
        if HAS_SCALE:
            own = (1.0 / tl.load(scale).to(tl.float64)).to(tl.float32)
        for at in range(0, length, BLOCK):
            place = at + tl.arange(0, BLOCK)
            inside = place < length
            x = tl.load(g + place, mask=inside, other=0.0).to(tl.float32)
            if apart > 0:
                held = given + unit + (into + place) // apart
                high = tl.load(held, mask=inside, other=0.0)
                low = tl.load(held + units, mask=inside, other=0.0)
                x = ((x - high) - low) * tl.load(held + 2 * units, mask=inside, other=0.0)
            elif unit >= 0:
                held = given + unit
                x = ((x - tl.load(held)) - tl.load(held + units)) * tl.load(held + 2 * units)
            else:
                x = x * own
            if KIND == _AFFINE:
                _store(g + place, x, inside, DTYPE)
            elif KIND == _ADAM:
                _adam(p, x, m, v, place, inside, c, DTYPE)
            else:
                _sgd(p, x, m, place, inside, c, DTYPE)


@triton.jit
def _store(place, value, inside, DTYPE: tl.constexpr):
    if _INTERPRETED and DTYPE == _BFLOAT16:
        # The interpreter cuts bits off where a GPU rounds to nearest, ties to even.
        bits = value.to(tl.uint32, bitcast=True)
        bits = tl.where(value == value, bits + 0x7FFF + ((bits >> 16) & 1), bits)
        rounded = (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
        tl.store(place, rounded, mask=inside)
    else:
        tl.store(place, value.to(DTYPE), mask=inside)


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
    _store(m + place, first, inside, DTYPE)
    _store(v + place, second, inside, DTYPE)
    _store(p + place, w, inside, DTYPE)


@triton.jit
def _sgd(p, x, m, place, inside, c, DTYPE: tl.constexpr):
    w = tl.load(p + place, mask=inside, other=0.0).to(tl.float32)
    rate, decay, momentum, taken = tl.load(c), tl.load(c + 1), tl.load(c + 2), tl.load(c + 3)
    own, shared = tl.load(c + 4), tl.load(c + 5)
    x = tl.fma(w, decay + tl.zeros_like(w), x * tl.load(c + 6))
    if shared != 0:  # else there is no momentum, and no buffer either
        held = tl.load(m + place, mask=inside, other=0.0).to(tl.float32)
        held = tl.fma(held, momentum + tl.zeros_like(w), taken * x)
        _store(m + place, held, inside, DTYPE)
        x = tl.fma(held, shared + tl.zeros_like(w), own * x)
    _store(p + place, w - rate * x, inside, DTYPE)


@triton.jit(do_not_specialize=_NUMBERS)
def advance_adam(
    addresses,
    groups,
    hyperparameters,
    constants,
    skip,
    tensors,
    BLOCK: tl.constexpr,
    HAS_SKIP: tl.constexpr,
):
    """Count a step for each tensor with a gradient, and write down its update's constants.

    ``groups``: the parameter group of each. ``hyperparameters``, of each group: lr, beta1, beta2,
    eps, weight decay, whether that is decoupled, whether to maximize.
    ``constants``: 1 - beta1, beta2, 1 - beta2, step size times r, eps times r, coupled weight
    decay, what the weight is multiplied by first, and -1 to maximize; r is sqrt(1 - beta2^t).
    """
    tensor = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = tensor < tensors
    present = inside & (tl.load(addresses + tensors + tensor, mask=inside, other=0) != 0)
    place = tl.load(addresses + 4 * tensors + tensor, mask=present, other=0)
    counter = place.to(tl.pointer_type(tl.float32))
    if HAS_SKIP:
        present = present & (tl.load(skip + tl.zeros_like(tensor)) == 0.0)
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


@triton.jit(do_not_specialize=_NUMBERS)
def advance_sgd(
    addresses,
    groups,
    hyperparameters,
    constants,
    begun,
    skip,
    tensors,
    BLOCK: tl.constexpr,
    HAS_SKIP: tl.constexpr,
):
    """Write down the constants of each tensor's update, and that its buffer now holds something.

    ``groups``: the parameter group of each. ``hyperparameters``, of each group: lr, momentum,
    dampening, weight decay, whether momentum is Nesterov's, whether to maximize.
    ``constants``: learning rate, weight decay, momentum, what the gradient counts in the buffer,
    what the gradient counts in the update beside the buffer, what the buffer counts there, and -1
    to maximize.
    """
    tensor = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = tensor < tensors
    present = inside & (tl.load(addresses + tensors + tensor, mask=inside, other=0) != 0)
    if HAS_SKIP:
        present = present & (tl.load(skip + tl.zeros_like(tensor)) == 0.0)
    o = hyperparameters + 6 * tl.load(groups + tensor, mask=inside, other=0)
    momentum = tl.load(o + 1, mask=inside, other=0.0)
    dampening = tl.load(o + 2, mask=inside, other=0.0)
    nesterov = tl.load(o + 4, mask=inside, other=0.0) != 0.0
    # The first step sets the buffer to the gradient.
    later = tl.load(begun + tensor, mask=inside, other=0) != 0
    tl.store(begun + tensor, 1, mask=present)
    c = constants + 8 * tensor
    tl.store(c, tl.load(o, mask=inside, other=0.0).to(tl.float32), mask=present)
    tl.store(c + 1, tl.load(o + 3, mask=inside, other=0.0).to(tl.float32), mask=present)
    tl.store(c + 2, tl.where(later, momentum, 0.0).to(tl.float32), mask=present)
    tl.store(c + 3, tl.where(later, 1.0 - dampening, 1.0).to(tl.float32), mask=present)
    own = tl.where((momentum == 0.0) | nesterov, 1.0, 0.0)
    tl.store(c + 4, own.to(tl.float32), mask=present)
    shared = tl.where(momentum == 0.0, 0.0, tl.where(nesterov, momentum, 1.0))
    tl.store(c + 5, shared.to(tl.float32), mask=present)
    maximizes = tl.load(o + 5, mask=inside, other=0.0) != 0.0
    tl.store(c + 6, tl.where(maximizes, -1.0, 1.0).to(tl.float32), mask=present)
