"""Clamping on a GPU, with the sums that a receipt needs: two kernels over a whole list of tensors.

Addresses, items and what they have in common with `kernels` are told there.
"""

from __future__ import annotations

import triton
import triton.language as tl

from znorm.kernels.triton.access import elements, is_aligned, offsets, pointer, store

__all__ = ["SUMS", "add_up", "clamp"]

# Of g, g^2, g * clamped and clamped^2, and how many entries were changed.
SUMS = 5
_SUMS = tl.constexpr(SUMS)


@triton.jit(do_not_specialize=["tensors"])
def clamp(addresses, items, partial, bound, tensors, DTYPE: tl.constexpr, BLOCK: tl.constexpr):
    """Clamp gradients to ``[-bound, bound]`` in place; each is read once and written once.

    ``items``: see `kernels.finish`. ``partial``: the five sums of each.
    """
    item = tl.program_id(0)
    row = items + 6 * item
    address = tl.load(addresses + tensors + tl.load(row))
    length = tl.load(row + 2).to(tl.int32)
    # One that is missing has sums too, of nothing.
    length = tl.where(address != 0, length, 0)
    start = address + tl.load(row + 1) * (DTYPE.primitive_bitwidth // 8)
    if is_aligned(start, length, DTYPE):
        _clamp(start, length, bound, partial + _SUMS * item, DTYPE, BLOCK, True)
    else:
        _clamp(start, length, bound, partial + _SUMS * item, DTYPE, BLOCK, False)


@triton.jit
def _clamp(
    start,
    length,
    bound,
    sums,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    g, length = pointer(start, DTYPE, ALIGNED), elements(length, DTYPE, ALIGNED)
    each = offsets(BLOCK, ALIGNED)
    changed = tl.zeros_like(each)
    total = changed.to(tl.float64)
    square, dot, after = total, total, total
    for at in range(0, length, BLOCK):
        place = at + each
        inside = place < length
        x = tl.load(g + place, mask=inside, other=0.0).to(tl.float32)
        high, low = x > bound, x < -bound
        # NaN is neither, and stays NaN as under torch.clamp.
        y = tl.where(high, bound, tl.where(low, -bound, x))
        store(g + place, y, inside, DTYPE)
        wide, clamped = x.to(tl.float64), y.to(tl.float64)
        total += wide
        square += wide * wide
        dot += wide * clamped
        after += clamped * clamped
        changed += (high | low).to(tl.int32)
    tl.store(sums, tl.sum(total))
    tl.store(sums + 1, tl.sum(square))
    tl.store(sums + 2, tl.sum(dot))
    tl.store(sums + 3, tl.sum(after))
    tl.store(sums + 4, tl.sum(changed).to(tl.float64))


@triton.jit
def add_up(spans, partial, sums, BLOCK: tl.constexpr):
    """The five sums of each tensor, of those of its items.

    ``spans``: of each tensor its first item, and how many it has.
    """
    tensor = tl.program_id(0)
    begin, items = tl.load(spans + 2 * tensor), tl.load(spans + 2 * tensor + 1)
    for number in tl.static_range(_SUMS):
        total = tl.zeros([BLOCK], tl.float64)
        for at in range(0, items, BLOCK):
            place = at + tl.arange(0, BLOCK)
            one = partial + _SUMS * (begin + place) + number
            total += tl.load(one, mask=place < items, other=0.0)
        tl.store(sums + _SUMS * tensor + number, tl.sum(total))
