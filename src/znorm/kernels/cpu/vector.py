"""Many float32 at a time, as values of types of their own.

Left to itself LLVM turns loops on half precision into poor vector instructions, and numba lets all
products and sums of a function become one operation or none. Written with lanes a loop says what it
means: each operation rounds, but for `multiply_add`, which may round once. The same functions take
single float32 numbers, with the same results to the bit, for what is left at the end of a stretch.

Lanes are one vector of sixteen, the widest that processors have or two to four of theirs; where
elements are of half precision they are four of them. Of one, two and four these are the fastest.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

from znorm.kernels.cpu.intrinsics import narrowed, widened

__all__ = ["lanes_of", "load_lanes", "multiply_add", "root", "store_lanes"]

_WIDTH = 16
_I32, _SINGLE = ir.IntType(32), ir.FloatType()
_VECTOR = ir.VectorType(_SINGLE, _WIDTH)


class _Lanes(types.Type):
    def __init__(self, vectors: int) -> None:
        super().__init__(f"znorm.Lanes({vectors})")
        self.vectors = vectors


@register_model(_Lanes)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: _Lanes) -> None:
        super().__init__(manager, kind, ir.ArrayType(_VECTOR, kind.vectors))


_ONE, _FOUR = _Lanes(1), _Lanes(4)
# By the types that stand for dtypes, see `intrinsics`.
_KINDS = {types.float32: _ONE, types.uint16: _FOUR, types.int16: _FOUR}


@intrinsic
def lanes_of(typing: Any, dtype: Any) -> Any:
    """The number of elements of a dtype that are taken at a time."""
    count = _WIDTH * _KINDS[dtype].vectors

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(ir.IntType(64), count)

    return types.int64(dtype), codegen


def _result(*kinds: Any) -> Any:
    """The type of an operation on these; None if it is not one for lanes."""
    wide = {kind for kind in kinds if kind != types.float32}
    if not wide:
        return types.float32
    return wide.pop() if wide in ({_ONE}, {_FOUR}) else None


def _each(builder: Any, signature: Any, values: Any, make: Callable[..., Any]) -> Any:
    """The operation on each vector of lanes, or on single numbers."""
    result = signature.return_type
    if result == types.float32:
        return make(*values)
    parts = [
        [_spread(builder, value)] * result.vectors
        if kind == types.float32
        else _vectors(builder, value)
        for kind, value in zip(signature.args, values, strict=True)
    ]
    return _joined(builder, [make(*operands) for operands in zip(*parts, strict=True)])


def _vectors(builder: Any, value: Any) -> list[Any]:
    return [builder.extract_value(value, number) for number in range(value.type.count)]


def _joined(builder: Any, vectors: list[Any]) -> Any:
    value = ir.Constant(ir.ArrayType(_VECTOR, len(vectors)), ir.Undefined)
    for number, vector in enumerate(vectors):
        value = builder.insert_value(value, vector, number)
    return value


def _spread(builder: Any, value: Any) -> Any:
    """One number in every place of a vector."""
    nothing = ir.Constant(_VECTOR, ir.Undefined)
    single = builder.insert_element(nothing, value, ir.Constant(_I32, 0))
    first = ir.Constant(ir.VectorType(_I32, _WIDTH), [0] * _WIDTH)
    return builder.shuffle_vector(single, nothing, first)


def _operation(python: Any, instruction: str) -> None:
    @intrinsic
    def operation(typing: Any, one: Any, other: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return _each(builder, signature, args, getattr(builder, instruction))

        return _result(one, other)(one, other), codegen

    @overload(python)
    def overloaded(one: Any, other: Any) -> Any:
        def implementation(one: Any, other: Any) -> Any:
            return operation(one, other)

        return implementation if _result(one, other) in (_ONE, _FOUR) else None


for _python, _instruction in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _operation(_python, _instruction)


def _call(builder: Any, signature: Any, args: Any, name: str) -> Any:
    """Call a function that LLVM has for every width."""
    single = signature.return_type == types.float32
    width, kind = ("f32", _SINGLE) if single else (f"v{_WIDTH}f32", _VECTOR)
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(kind, [kind] * len(args)), f"llvm.{name}.{width}"
    )
    return _each(builder, signature, args, lambda *operands: builder.call(function, operands))


@intrinsic
def multiply_add(typing: Any, one: Any, other: Any, added: Any) -> Any:
    """``one * other + added``, rounded once where the processor can."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _call(builder, signature, args, "fmuladd")

    return _result(one, other, added)(one, other, added), codegen


@intrinsic
def root(typing: Any, value: Any) -> Any:
    """The square root."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _call(builder, signature, args, "sqrt")

    return value(value), codegen


@intrinsic
def load_lanes(typing: Any, pointer: Any, index: Any) -> Any:
    """Elements from ``index`` on as lanes."""
    dtype = pointer.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        places = _places(builder, args, dtype)
        return _joined(builder, [widened(builder, place, dtype, _WIDTH) for place in places])

    return _KINDS[dtype](pointer, types.int64), codegen


@intrinsic
def store_lanes(typing: Any, pointer: Any, index: Any, value: Any) -> Any:
    """Round lanes to the pointer's dtype and write them from element ``index`` on."""
    dtype = pointer.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        places = _places(builder, args, dtype)
        for place, vector in zip(places, _vectors(builder, args[2]), strict=True):
            narrow = narrowed(builder, vector, dtype, _WIDTH)
            builder.store(narrow, place, align=dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(pointer, types.int64, _KINDS[dtype]), codegen


def _places(builder: Any, args: Any, dtype: Any) -> list[Any]:
    """The address of each vector."""
    kind = ir.VectorType(_SINGLE if dtype == types.float32 else ir.IntType(16), _WIDTH)
    places = []
    for number in range(_KINDS[dtype].vectors):
        index = builder.add(args[1], ir.Constant(args[1].type, number * _WIDTH))
        places.append(builder.bitcast(builder.gep(args[0], [index]), kind.as_pointer()))
    return places
