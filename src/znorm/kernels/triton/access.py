"""Reading and writing memory: 16 bytes a thread at a time where a tensor lies so that it can be.

A stretch of memory is aligned if it begins at a multiple of 16 bytes in every tensor that is read
or written there, and is a multiple of 16 bytes long. Kernels look at that themselves, stretch by
stretch: addresses are known on the device alone once a step is captured in a CUDA graph, and one
tensor that begins anywhere costs the others nothing. Each kernel holds both forms.
"""

from __future__ import annotations

import os

import triton
import triton.language as tl

__all__ = ["INTERPRETED", "elements", "is_aligned", "offsets", "pointer", "store"]

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

_INTERPRETED = tl.constexpr(INTERPRETED)
_BFLOAT16 = tl.constexpr(tl.bfloat16)
# Bytes of the widest load that a thread has.
_WIDE = tl.constexpr(16)
# Elements of a row, as many as a program of four warps has threads.
_ROW = tl.constexpr(128)


@triton.jit
def is_aligned(address, length, DTYPE: tl.constexpr):
    """Tell whether a stretch is; ``address`` may be those of several tensors, joined by ``|``."""
    return ((address | length * (DTYPE.primitive_bitwidth // 8)) % _WIDE) == 0


@triton.jit
def pointer(address, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """A pointer to elements; that they are aligned is a promise which the compiler builds on."""
    place = address.to(tl.pointer_type(DTYPE))
    if ALIGNED:
        place = tl.multiple_of(place, _WIDE)
    return place


@triton.jit
def elements(length, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """The length of a stretch, so that a mask made of it is seen to be one over 16 bytes."""
    if ALIGNED:
        several: tl.constexpr = _WIDE * 8 // DTYPE.primitive_bitwidth
        length = length // several * several
    return length


@triton.jit
def offsets(BLOCK: tl.constexpr, ALIGNED: tl.constexpr):
    """The numbers of a block's elements, from 0.

    In rows where they are not aligned: the compiler gives all loads of one shape in a kernel the
    form of the widest, and threads that read their neighbours' bytes one by one would ask for each
    stretch of memory several times.
    """
    if ALIGNED:
        each = tl.arange(0, BLOCK)
    else:
        each = tl.arange(0, BLOCK // _ROW)[:, None] * _ROW + tl.arange(0, _ROW)[None, :]
    return each


@triton.jit
def store(place, value, inside, DTYPE: tl.constexpr):
    """Write numbers rounded to the nearest, ties to even."""
    if _INTERPRETED and DTYPE == _BFLOAT16:
        # The interpreter cuts bits off where a GPU rounds to nearest, ties to even.
        bits = value.to(tl.uint32, bitcast=True)
        bits = tl.where(value == value, bits + 0x7FFF + ((bits >> 16) & 1), bits)
        rounded = (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
        tl.store(place, rounded, mask=inside)
    else:
        tl.store(place, value.to(DTYPE), mask=inside)
