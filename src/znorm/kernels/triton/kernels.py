"""Three small kernels in Triton, each over a whole list of tensors.

Tensors are found by tables of their addresses, as numbers: one launch serves hundreds of them.
Sums are float64, in a fixed order, with no atomics: the same bits on every run. Where a table holds
0 for a gradient, it is missing and nothing of its tensor changes.

Addresses lie in rows: parameters, gradients, the two states, step counters. Where a stretch begins
in a tensor is a number of 64 bits; within one, of a few thousand elements, 32 are enough.

No argument may be called ``options``: Triton's launcher has one of that name itself.
"""

from __future__ import annotations

import triton
import triton.language as tl

from znorm.kernels.triton.access import elements, is_aligned, offsets, pointer, store
from znorm.kernels.triton.updates import update

__all__ = ["AFFINE", "finish", "measure", "merge"]

# What `finish` does; update rules have the numbers of `updates.RULES`.
AFFINE = 0
_AFFINE = tl.constexpr(AFFINE)

# Numbers that change from launch to launch, and are not worth a kernel of their plain each.
_NUMBERS = ["tensors", "units"]


@triton.jit(do_not_specialize=_NUMBERS)
def measure(addresses, items, partial, tensors, DTYPE: tl.constexpr, BLOCK: tl.constexpr):
    """Sum and sum of squares of ``g - shift``, the shift being the first element of the unit.

    ``items``: of each its tensor, where it starts, its length, where its unit starts.
    ``partial``: the two sums of each.
    """
    item = tl.program_id(0)
    row = items + 4 * item
    address = tl.load(addresses + tensors + tl.load(row))
    if address != 0:
        g = address.to(tl.pointer_type(DTYPE))
        shift = tl.load(g + tl.load(row + 3)).to(tl.float32).to(tl.float64)
        start = address + tl.load(row + 1) * (DTYPE.primitive_bitwidth // 8)
        length = tl.load(row + 2).to(tl.int32)
        if is_aligned(start, length, DTYPE):
            _sums(start, length, shift, partial + 2 * item, DTYPE, BLOCK, True)
        else:
            _sums(start, length, shift, partial + 2 * item, DTYPE, BLOCK, False)


@triton.jit
def _sums(
    start, length, shift, pair, DTYPE: tl.constexpr, BLOCK: tl.constexpr, ALIGNED: tl.constexpr
):
    g, length = pointer(start, DTYPE, ALIGNED), elements(length, DTYPE, ALIGNED)
    each = offsets(BLOCK, ALIGNED)
    total = tl.zeros_like(each).to(tl.float64)
    squares = tl.zeros_like(each).to(tl.float64)
    for at in range(0, length, BLOCK):
        place = at + each
        inside = place < length
        x = tl.load(g + place, mask=inside, other=0.0).to(tl.float32).to(tl.float64)
        deviation = tl.where(inside, x - shift, 0.0)
        total += deviation
        squares += deviation * deviation
    tl.store(pair, tl.sum(total))
    tl.store(pair + 1, tl.sum(squares))


@triton.jit(do_not_specialize=_NUMBERS)
def merge(
    addresses,
    rows,
    partial,
    moments,
    coefficients,
    sums,
    row_of_unit,
    z_score,
    inv_scale,
    found_inf,
    tensors,
    units,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
    DECIDES: tl.constexpr,
    RECORDS: tl.constexpr,
    HAS_INV_SCALE: tl.constexpr,
    HAS_FOUND_INF: tl.constexpr,
):
    """Moments of each unit; if it ``DECIDES``, its coefficients by ZNorm, and the receipt's entry.

    ``rows``: of each unit its tensor, where it starts, its length, its first item, how many items,
    its number in the layout, of which there are ``units``.
    ``moments``: mean and m2 by these numbers. ``coefficients``: see `finish`.
    ``z_score``: eps, center, scale, correction.
    ``sums``: a receipt's, by the rows that ``row_of_unit`` has for the layout's units.
    """
    row = rows + 6 * tl.program_id(0)
    address = tl.load(addresses + tensors + tl.load(row))
    origin, length = tl.load(row + 1), tl.load(row + 2)
    begin, items, number = tl.load(row + 3), tl.load(row + 4), tl.load(row + 5)
    if address != 0:
        totals = tl.zeros([BLOCK], tl.float64)
        squares = tl.zeros([BLOCK], tl.float64)
        for at in range(0, items, BLOCK):
            place = at + tl.arange(0, BLOCK)
            pair = partial + 2 * (begin + place)
            totals += tl.load(pair, mask=place < items, other=0.0)
            squares += tl.load(pair + 1, mask=place < items, other=0.0)
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
            inverse = mean * 0.0 + 1.0
            if HAS_INV_SCALE:
                inverse = tl.load(inv_scale).to(tl.float64)
            center, multiplier = _z_score(mean, m2, n, z_score, inverse)
            high = center.to(tl.float32)
            tl.store(coefficients + number, high)
            tl.store(coefficients + units + number, (center - high.to(tl.float64)).to(tl.float32))
            tl.store(coefficients + 2 * units + number, multiplier.to(tl.float32))
            if RECORDS:
                counts = n > 0
                if HAS_FOUND_INF:
                    counts = tl.load(found_inf) == 0
                if counts:
                    entry = sums + 7 * tl.load(row_of_unit + number)
                    _record(entry, mean * inverse, m2 * inverse * inverse, n, z_score)


@triton.jit
def _z_score(mean, m2, n, z_score, inverse):
    """ZNorm's formula, as `znorm.ZNorm.decide` has it; tests hold the two equal."""
    eps, centers = tl.load(z_score), tl.load(z_score + 1)
    scales, correction = tl.load(z_score + 2), tl.load(z_score + 3)
    std = tl.sqrt(m2 / tl.maximum(n - correction, 1.0)) * inverse
    scale = tl.where(scales != 0.0, inverse / (std + eps), inverse)
    scale = tl.where((m2 == 0.0) & ((centers != 0.0) | (scales != 0.0)), 0.0, scale)
    # Of all of the tensor, where any of it is not finite: nothing is hidden from torch's guards.
    bad = (mean + m2) * 0.0
    return tl.where(centers != 0.0, mean, 0.0), scale + bad


@triton.jit
def _record(row, mean, m2, n, z_score):
    """Add to a receipt's sums, as `znorm.engine.receipts.Receipt.add` does."""
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
    coefficients,
    constants,
    inv_scale,
    found_inf,
    tensors,
    units,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
    KIND: tl.constexpr,
    HAS_INV_SCALE: tl.constexpr,
    HAS_FOUND_INF: tl.constexpr,
):
    """``g = ((g - high) - low) * scale`` in place, or an update by that, in float32, rounded once.

    ``items``: of each its tensor, where it starts, its length, its unit's number in the layout,
    and where several units lie one after the other the length of each and how far into the first
    of them it starts. A unit of -1: a tensor of which nothing is measured.
    ``coefficients``: high, low and scale of each of the layout's units.
    ``constants``: eight numbers of each tensor, see `updates`.
    """
    # The last first: the end of what `measure` has just read is still in the cache.
    row = items + 6 * (tl.num_programs(0) - 1 - tl.program_id(0))
    tensor, start, length = tl.load(row), tl.load(row + 1), tl.load(row + 2).to(tl.int32)
    unit = tl.load(row + 3)
    apart, into = tl.load(row + 4).to(tl.int32), tl.load(row + 5).to(tl.int32)
    g = tl.load(addresses + tensors + tensor)
    present = g != 0
    if HAS_FOUND_INF:
        present = present & (tl.load(found_inf) == 0)
    if present:
        begin = start * (DTYPE.primitive_bitwidth // 8)
        g += begin
        p, m, v = g, g, g
        if KIND != _AFFINE:
            p = tl.load(addresses + tensor) + begin
            m = tl.load(addresses + 2 * tensors + tensor) + begin
            v = tl.load(addresses + 3 * tensors + tensor) + begin
        decided, c = coefficients + unit, constants + 8 * tensor
        plain = 1.0
        if HAS_INV_SCALE:
            plain = tl.load(inv_scale).to(tl.float32)
        if is_aligned(g | p | m | v, length, DTYPE):
            _map(
                g, p, m, v, length, decided, units, unit, apart, into, plain, c,
                DTYPE, BLOCK, KIND, True,
            )  # fmt: skip
        else:
            _map(
                g, p, m, v, length, decided, units, unit, apart, into, plain, c,
                DTYPE, BLOCK, KIND, False,
            )  # fmt: skip


@triton.jit
def _map(
    g,
    p,
    m,
    v,
    length,
    decided,
    units,
    unit,
    apart,
    into,
    plain,
    c,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
    KIND: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Do what `finish` does to one item; ``g`` to ``v`` are addresses."""
    length = elements(length, DTYPE, ALIGNED)
    g, p = pointer(g, DTYPE, ALIGNED), pointer(p, DTYPE, ALIGNED)
    m, v = pointer(m, DTYPE, ALIGNED), pointer(v, DTYPE, ALIGNED)
    each = offsets(BLOCK, ALIGNED)
    for at in range(0, length, BLOCK):
        place = at + each
        inside = place < length
        x = tl.load(g + place, mask=inside, other=0.0).to(tl.float32)
        if apart > 0:
            own = decided + (into + place) // apart
            high = tl.load(own, mask=inside, other=0.0)
            low = tl.load(own + units, mask=inside, other=0.0)
            x = ((x - high) - low) * tl.load(own + 2 * units, mask=inside, other=0.0)
        elif unit >= 0:
            high, low = tl.load(decided), tl.load(decided + units)
            x = ((x - high) - low) * tl.load(decided + 2 * units)
        else:
            x = x * plain
        if KIND == _AFFINE:
            store(g + place, x, inside, DTYPE)
        else:
            update(p, x, m, v, place, inside, c, DTYPE, KIND)
