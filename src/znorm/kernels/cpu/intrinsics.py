"""Intrinsics that numba lacks: pointers to three dtypes, atomics, and giving the core away.

A pointer's dtype is told by a value of a stand-in type: numpy has no bfloat16, and numba no float16
on a CPU. `DTYPES` names them. Loads widen to float32, stores round once to the nearest even.
"""

from __future__ import annotations

import os
import platform
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = [
    "DTYPES",
    "address_of",
    "at",
    "atomic_add",
    "atomic_load",
    "load",
    "narrowed",
    "pause",
    "pointer_to",
    "rest",
    "store",
    "widened",
]

# For each dtype a value whose type stands for it.
DTYPES = {
    torch.float32: np.float32(0),
    torch.bfloat16: np.uint16(0),
    torch.float16: np.int16(0),
}

_BYTES = {types.float32: 4, types.uint16: 2, types.int16: 2}


@intrinsic
def at(typing: Any, address: Any, offset: Any, dtype: Any) -> Any:
    """The pointer to element ``offset`` after ``address``."""
    pointer = types.CPointer(dtype)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        size = ir.Constant(ir.IntType(64), _BYTES[dtype])
        start = builder.add(args[0], builder.mul(args[1], size))
        return builder.inttoptr(start, context.get_value_type(pointer))

    return pointer(types.int64, types.int64, dtype), codegen


@intrinsic
def pointer_to(typing: Any, address: Any, like: Any) -> Any:
    """The pointer to numbers of the type of ``like``."""
    pointer = types.CPointer(like)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(pointer))

    return pointer(types.int64, like), codegen


@intrinsic
def address_of(typing: Any, pointer: Any) -> Any:
    """The address that a pointer holds."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ptrtoint(args[0], ir.IntType(64))

    return types.int64(pointer), codegen


@intrinsic
def load(typing: Any, pointer: Any, index: Any) -> Any:
    """Element ``index`` as float32."""
    dtype = pointer.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return widened(builder, builder.gep(args[0], [args[1]]), dtype)

    return types.float32(pointer, types.int64), codegen


@intrinsic
def store(typing: Any, pointer: Any, index: Any, value: Any) -> Any:
    """Round a float32 to the pointer's dtype and write it to element ``index``."""
    dtype = pointer.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(narrowed(builder, args[2], dtype), builder.gep(args[0], [args[1]]))
        return context.get_dummy_value()

    return types.void(pointer, types.int64, types.float32), codegen


def _of(kind: Any, count: int) -> Any:
    return kind if count == 1 else ir.VectorType(kind, count)


def _all(kind: Any, value: int, count: int) -> Any:
    return ir.Constant(_of(kind, count), value if count == 1 else [value] * count)


def widened(builder: Any, pointer: Any, dtype: Any, count: int = 1) -> Any:
    """Load ``count`` elements next to each other as float32."""
    # Tensors lie where their elements can, not where vectors should.
    value = builder.load(pointer, align=_BYTES[dtype])
    if dtype == types.uint16:
        i32 = ir.IntType(32)
        wide = builder.shl(builder.zext(value, _of(i32, count)), _all(i32, 16, count))
        return builder.bitcast(wide, _of(ir.FloatType(), count))
    if dtype == types.int16:
        half = builder.bitcast(value, _of(ir.HalfType(), count))
        return builder.fpext(half, _of(ir.FloatType(), count))
    return value


def narrowed(builder: Any, value: Any, dtype: Any, count: int = 1) -> Any:
    """Round float32 once, to the nearest even."""
    i32, i16 = ir.IntType(32), ir.IntType(16)
    if dtype == types.uint16:
        # A NaN stays one: the low half of its bits is 0, since it comes from a bfloat16 or from
        # the processor, and what is added to them then reaches no further.
        bits = builder.bitcast(value, _of(i32, count))
        odd = builder.and_(builder.lshr(bits, _all(i32, 16, count)), _all(i32, 1, count))
        bits = builder.add(builder.add(bits, _all(i32, 0x7FFF, count)), odd)
        return builder.trunc(builder.lshr(bits, _all(i32, 16, count)), _of(i16, count))
    if dtype == types.int16:
        return builder.bitcast(builder.fptrunc(value, _of(ir.HalfType(), count)), _of(i16, count))
    return value


def _place(context: Any, builder: Any, array: Any, args: Any) -> Any:
    made = context.make_array(array)(context, builder, args[0])
    return builder.gep(made.data, [args[1]])


@intrinsic
def atomic_add(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """Add to an element of an int64 array, and get what it was."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = _place(context, builder, array, args)
        return builder.atomic_rmw("add", place, args[2], "seq_cst")

    return types.int64(array, types.int64, types.int64), codegen


@intrinsic
def atomic_load(typing: Any, array: Any, index: Any) -> Any:
    """An element of an int64 array that other threads write."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(_place(context, builder, array, args), "acquire", 8)

    return types.int64(array, types.int64), codegen


@intrinsic
def pause(typing: Any) -> Any:
    """Tell the processor that this thread is only waiting, so that its other one is not slowed."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if platform.machine().lower() in ("x86_64", "amd64"):
            kind = ir.FunctionType(ir.VoidType(), [])
            name = "llvm.x86.sse2.pause"
            builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def rest(typing: Any) -> Any:
    """Let another thread have the core, if one waits for it."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        name = "SwitchToThread" if os.name == "nt" else "sched_yield"
        kind = ir.FunctionType(ir.IntType(32), [])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [])
        return context.get_dummy_value()

    return types.void(), codegen
