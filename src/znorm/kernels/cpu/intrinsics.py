"""What numba does not have: raw pointers to three dtypes, atomics, and giving the core away.

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
    "at",
    "atomic_add",
    "atomic_load",
    "load",
    "pause",
    "rest",
    "single_at",
    "store",
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
def single_at(typing: Any, address: Any) -> Any:
    """The pointer to a single float32, such as a step counter."""
    pointer = types.CPointer(types.float32)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(pointer))

    return pointer(types.int64), codegen


@intrinsic
def load(typing: Any, pointer: Any, index: Any) -> Any:
    """Element ``index`` as float32."""
    dtype = pointer.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = builder.load(builder.gep(args[0], [args[1]]))
        if dtype == types.uint16:
            wide = builder.shl(builder.zext(value, ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
            return builder.bitcast(wide, ir.FloatType())
        if dtype == types.int16:
            return builder.fpext(builder.bitcast(value, ir.HalfType()), ir.FloatType())
        return value

    return types.float32(pointer, types.int64), codegen


@intrinsic
def store(typing: Any, pointer: Any, index: Any, value: Any) -> Any:
    """Round a float32 to the pointer's dtype and write it to element ``index``."""
    dtype = pointer.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        i32, i16 = ir.IntType(32), ir.IntType(16)
        value = args[2]
        if dtype == types.uint16:
            bits = builder.bitcast(value, i32)
            odd = builder.and_(builder.lshr(bits, ir.Constant(i32, 16)), ir.Constant(i32, 1))
            up = builder.add(builder.add(bits, ir.Constant(i32, 0x7FFF)), odd)
            # Rounded up, a NaN's bits could wrap around to a number.
            nan = builder.fcmp_unordered("uno", value, value)
            bits = builder.select(nan, builder.or_(bits, ir.Constant(i32, 0x400000)), up)
            value = builder.trunc(builder.lshr(bits, ir.Constant(i32, 16)), i16)
        elif dtype == types.int16:
            value = builder.bitcast(builder.fptrunc(value, ir.HalfType()), i16)
        builder.store(value, builder.gep(args[0], [args[1]]))
        return context.get_dummy_value()

    return types.void(pointer, types.int64, types.float32), codegen


def _place(context: Any, builder: Any, array: Any, args: Any) -> Any:
    held = context.make_array(array)(context, builder, args[0])
    return builder.gep(held.data, [args[1]])


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
