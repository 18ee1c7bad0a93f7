"""One thread's share of a step over a list of tensors; all threads call `run` at once.

A tensor is decided and finished while it is in cache, whole, by whichever thread is free. Only
what is too large for that to be fair is done by all threads together, which wait for each other
once, between measuring and finishing. How many threads there are changes no bit: a large tensor is
summed in blocks of one size, which are merged in their order, whoever does it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, njit

from znorm.kernels.cpu import kernels, updates
from znorm.kernels.cpu.intrinsics import (
    address_of,
    at,
    atomic_add,
    atomic_load,
    load,
    pause,
    pointer_to,
    rest,
)

__all__ = [
    "AFFINE",
    "BLOCK",
    "LARGE",
    "MEASURE",
    "clamp",
    "compare",
    "from_table",
    "record",
    "run",
]

# What is done to a unit once it is decided; update rules have the numbers of `updates.RULES`.
MEASURE, AFFINE = range(2)

_INT, _DOUBLE, _SINGLE = np.int64(0), np.float64(0), np.float32(0)

# Elements that are summed together of a large unit, and from how many on it is one.
BLOCK = 1 << 14
LARGE = 1 << 17

_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
_KEPT = {**_OPTIONS, "cache": True}


@njit(**_OPTIONS)
def run(
    thread,
    threads,
    kind,
    measures,
    dtype,
    addresses,
    split,
    whole,
    transform,
    inv_scale,
    coefficients,
    moments,
    constants,
    partial,
    sync,
):
    """A thread's share of one step.

    Parameters
    ----------
    thread, threads : int
    kind : int
        MEASURE, AFFINE (in place) or that of a rule: what is done to a unit once it is decided.
    measures : bool
        Whether units are measured here and decided by ``transform``; else ``coefficients`` holds
        what was decided for each unit.
    dtype
        A value of `intrinsics.DTYPES`.
    addresses : int64 array of shape (4, tensors)
        Of parameters, gradients (0: missing), and the optimizer's two states.
    split : int64 array of shape (n, 5)
        Tensor, start, length, unit and first row of ``partial`` of what all threads share; there
        is none if not ``measures``.
    whole : int64 array of shape (n, 6)
        Tensor, start, elements of a unit, units, first unit (-1: not transformed) and first row of
        ``partial`` (-1: summed at once) of what one thread does.
    transform : float64 array of 4
        ZNorm's eps, center, scale and correction.
    inv_scale : float
        What gradients are multiplied by before all else: the inverse of a loss scale.
    coefficients : float32 array of shape (3, units)
        High and low part of the center, and the scale.
    moments : float64 array of shape (2, units)
        Written where ``measures``: means and sums of squared deviations, without ``inv_scale``.
    constants : float32 array of shape (tensors, 8)
        Of the update, see `updates`.
    partial : float64 array of shape (blocks, 2)
        Where threads leave their sums for each other, by block of a tensor.
    sync : int64 array of n + 2
        0 at the start: the next whole item, whether to give up, and for each split item how many
        threads have measured it.
    """
    for item in range(split.shape[0]):
        tensor, origin, length = split[item, 0], split[item, 1], split[item, 2]
        unit, row = split[item, 3], split[item, 4]
        gradient = addresses[1, tensor]
        if gradient == 0:
            continue
        quarter = _quarter(length)
        begin, end = thread * quarter // threads, (thread + 1) * quarter // threads
        shift = np.float64(load(at(gradient, origin, dtype), 0))
        _sum_blocks(gradient, origin, length, begin, end, shift, partial, row, dtype)
        atomic_add(sync, 2 + item, 1)
        turns = 0
        while atomic_load(sync, 2 + item) < threads:
            turns += 1
            pause()
            if turns > 2000:
                if atomic_load(sync, 1) != 0:
                    return
                rest()
        total, squares = _merge_blocks(partial, row, length)
        mean, m2 = _finish_sums(shift, total, squares, length)
        if thread == 0:
            moments[0, unit] = mean
            moments[1, unit] = m2
        high, low, scale = _split(*_z_score(mean, m2, length, transform, inv_scale))
        # What this thread has measured, and has in its cache.
        for k in range(4):
            start = (begin + k * quarter) * BLOCK
            mine = min((end + k * quarter) * BLOCK, length) - start
            if mine > 0:
                start += origin
                _finish(kind, addresses, tensor, start, mine, high, low, scale, constants, dtype)

    while True:
        item = atomic_add(sync, 0, 1)
        if item >= whole.shape[0]:
            return
        tensor, start, size = whole[item, 0], whole[item, 1], whole[item, 2]
        units, first = whole[item, 3], whole[item, 4]
        gradient = addresses[1, tensor]
        if gradient == 0:
            continue
        for number in range(units):
            high, low, scale = np.float32(0), np.float32(0), np.float32(inv_scale)
            begin = start + number * size
            unit = first + number
            if first >= 0 and measures:
                shift = np.float64(load(at(gradient, begin, dtype), 0))
                row = whole[item, 5]
                if row >= 0:
                    _sum_blocks(
                        gradient, begin, size, 0, _quarter(size), shift, partial, row, dtype
                    )
                    total, squares = _merge_blocks(partial, row, size)
                else:
                    total, squares = kernels.sums(gradient, begin, size, shift, dtype)
                mean, m2 = _finish_sums(shift, total, squares, size)
                moments[0, unit] = mean
                moments[1, unit] = m2
                high, low, scale = _split(*_z_score(mean, m2, size, transform, inv_scale))
            elif first >= 0:
                # Decided on whole tensors: a large one may come in several items of one unit.
                high, low = coefficients[0, unit], coefficients[1, unit]
                scale = coefficients[2, unit]
            _finish(kind, addresses, tensor, begin, size, high, low, scale, constants, dtype)


def from_table(table):
    """`run` as `entry` compiles it to a C function: with a table of `entry.make_table`."""
    # The table is of int64, but its pointer is to the type that stands for a dtype, by which numba
    # tells what it has compiled, in memory and on disk.
    job = pointer_to(address_of(table), _INT)
    tensors, units, split, whole, partial, sync = job[5], job[6], job[7], job[8], job[9], job[10]
    run(
        job[0],
        job[1],
        job[2],
        job[4] != 0,
        table[0],
        carray(pointer_to(job[11], _INT), (4, tensors)),
        carray(pointer_to(job[12], _INT), (split, 5)),
        carray(pointer_to(job[13], _INT), (whole, 6)),
        carray(pointer_to(job[14], _DOUBLE), 4),
        pointer_to(address_of(table), _DOUBLE)[3],
        carray(pointer_to(job[15], _SINGLE), (3, units)),
        carray(pointer_to(job[16], _DOUBLE), (2, units)),
        carray(pointer_to(job[17], _SINGLE), (tensors, 8)),
        carray(pointer_to(job[18], _DOUBLE), (partial, 2)),
        carray(pointer_to(job[19], _INT), sync),
    )


@njit(**_OPTIONS)
def _quarter(length):
    """The number of blocks in a quarter of a large unit."""
    return ((length + BLOCK - 1) // BLOCK + 3) // 4


@njit(**_OPTIONS)
def _sum_blocks(gradient, origin, length, begin, end, shift, partial, row, dtype):
    """Sum blocks of a large unit, four at a time, a quarter of it apart: memory then waits less."""
    quarter = _quarter(length)
    for block in range(begin, end):
        if (block + 3 * quarter + 1) * BLOCK <= length:
            four = kernels.sums_of_four(
                gradient, origin + block * BLOCK, quarter * BLOCK, BLOCK, shift, dtype
            )
            for k in range(4):
                partial[row + block + k * quarter, 0] = four[2 * k]
                partial[row + block + k * quarter, 1] = four[2 * k + 1]
            continue
        for k in range(4):
            start = (block + k * quarter) * BLOCK
            if start < length:
                total, squares = kernels.sums(
                    gradient, origin + start, min(BLOCK, length - start), shift, dtype
                )
                partial[row + block + k * quarter, 0] = total
                partial[row + block + k * quarter, 1] = squares


@njit(**_OPTIONS)
def _merge_blocks(partial, row, length):
    total = 0.0
    squares = 0.0
    for block in range(row, row + (length + BLOCK - 1) // BLOCK):
        total += partial[block, 0]
        squares += partial[block, 1]
    return total, squares


@njit(**_KEPT)
def clamp(thread, threads, dtype, addresses, whole, bound, read, sync):
    """A thread's share of clamping a list of tensors.

    Parameters
    ----------
    thread, threads, dtype, addresses, whole
        As in `run`.
    bound : float32
        Clamped to this and its negative.
    read : float64 array of shape (n, 5)
        Written for each item of ``whole``, see `kernels.clamp`.
    sync : int64 array of 1
        0 at the start: the next item.
    """
    while True:
        item = atomic_add(sync, 0, 1)
        if item >= whole.shape[0]:
            return
        gradient = addresses[1, whole[item, 0]]
        if gradient != 0:
            sums = kernels.clamp(gradient, whole[item, 1], whole[item, 2], bound, dtype)
            for k in range(5):
                read[item, k] = sums[k]


@njit(**_KEPT)
def compare(thread, threads, dtype, addresses, whole, read, sync):
    """A thread's share of reading a list of tensors as they were and as they are.

    Parameters
    ----------
    thread, threads, dtype, whole, sync
        As in `clamp`.
    addresses : int64 array of shape (4, tensors)
        Of the tensors as they were, and as they are.
    read : float64 array of shape (n, 5)
        Written for each item of ``whole``, see `kernels.compare`.
    """
    while True:
        item = atomic_add(sync, 0, 1)
        if item >= whole.shape[0]:
            return
        tensor = whole[item, 0]
        one, other = addresses[0, tensor], addresses[1, tensor]
        if one != 0 and other != 0:
            sums = kernels.compare(one, other, whole[item, 1], whole[item, 2], dtype)
            for k in range(5):
                read[item, k] = sums[k]


@njit(**_OPTIONS)
def _finish_sums(shift, total, squares, n):
    m2 = squares - total * total / n
    # Written so that NaN stays NaN: rounding alone can make a sum of squares negative.
    if m2 < 0:
        m2 = 0.0
    return shift + total / n, m2


@njit(**_OPTIONS)
def _z_score(mean, m2, n, transform, inv_scale):
    """ZNorm's formula, as `znorm.ZNorm.decide` has it; tests hold the two equal."""
    eps, centers, scales, correction = transform[0], transform[1], transform[2], transform[3]
    scale = inv_scale
    if scales != 0:
        std = np.sqrt(m2 / max(n - correction, 1.0)) * inv_scale
        scale = inv_scale / (std + eps)
    if (centers != 0 or scales != 0) and m2 == 0:
        scale = 0.0
    if not np.isfinite(mean + m2):
        # All of the tensor: nothing is hidden from torch's own guards.
        scale = np.nan
    return (mean if centers != 0 else 0.0), scale


@njit(**_OPTIONS)
def _split(center, scale):
    """Coefficients as the loops take them: the center in two parts, all in float32."""
    high = np.float32(center)
    low = np.float32(center - np.float64(high))
    return high, low, np.float32(scale)


@njit(**_OPTIONS)
def _finish(kind, addresses, tensor, start, length, high, low, scale, constants, dtype):
    if kind == AFFINE:
        kernels.affine(addresses[1, tensor], start, length, high, low, scale, dtype)
    elif kind > AFFINE:
        updates.update(kind, addresses, tensor, start, length, high, low, scale, constants, dtype)


@njit(**_KEPT)
def record(sums, row_of_unit, addresses, tensors, units, sizes, moments, transform, inv_scale):
    """Add a step of ZNorm to a receipt's running sums, as `znorm.engine.receipts.Receipt.add` does.

    Parameters
    ----------
    sums : float64 array of shape (tensors of the receipt, 7)
        norm before, norm after, mean, std, cosine, clipped, steps.
    row_of_unit : int64 array of units of the layout
        The row of ``sums`` of each.
    addresses : int64 array of shape (4, tensors)
    tensors, units, sizes : int64 arrays of n
        Of each measured tensor its place, its unit and its elements.
    moments : float64 array of shape (2, units of the layout)
    transform, inv_scale
        As in `run`.
    """
    for k in range(len(units)):
        if addresses[1, tensors[k]] == 0:
            continue
        n = np.float64(sizes[k])
        mean = moments[0, units[k]] * inv_scale
        m2 = moments[1, units[k]] * inv_scale * inv_scale
        center, scale = _z_score(mean, m2, n, transform, 1.0)
        before = np.sqrt(m2 + n * mean * mean)
        after = scale * np.sqrt(m2 + n * (mean - center) * (mean - center))
        both = before * after
        cosine = 0.0
        if both != 0:
            cosine = scale * (m2 + n * mean * (mean - center)) / both
            if cosine > 1:
                cosine = 1.0
        row = sums[row_of_unit[units[k]]]
        row[0] += before
        row[1] += after
        row[2] += mean
        row[3] += np.sqrt(m2 / n)
        row[4] += cosine
        row[6] += 1
