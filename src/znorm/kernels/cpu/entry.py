"""Compiling the kernels to a C function: `driver.run`, called with a table of numbers."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np
from numba import cfunc, typeof, types

from znorm.kernels.cpu import driver
from znorm.kernels.cpu.cache import own_cache

__all__ = ["INV_SCALE", "KIND", "MEASURES", "THREAD", "THREADS", "entry", "make_table"]

_Array = np.ndarray[Any, Any]

# Places in the table; all but the last are to be set before each call.
THREAD, THREADS, KIND, INV_SCALE, MEASURES = range(5)


def make_table(
    measures: bool,
    addresses: _Array,
    split: _Array,
    whole: _Array,
    transform: _Array,
    coefficients: _Array,
    moments: _Array,
    constants: _Array,
    partial: _Array,
    sync: _Array,
) -> _Array:
    """The table that `entry` is called with: arguments of `driver.run`, which must outlive it.

    Returns
    -------
    int64 array
        THREAD, THREADS and KIND are to be set before each call, and the bits of INV_SCALE, a
        float64.
    """
    arrays = (addresses, split, whole, transform, coefficients, moments, constants, partial, sync)
    return np.array(
        [
            0,
            1,
            0,
            0,
            measures,
            addresses.shape[1],
            moments.shape[1],
            len(split),
            len(whole),
            len(partial),
            len(sync),
            *(array.ctypes.data for array in arrays),
        ],
        dtype=np.int64,
    )


def entry(dtype: Any) -> Any:
    """The C function for a dtype, told by its stand-in; compiled at the first call.

    Returns
    -------
    ctypes function (address of a table) -> None
        It gives up the interpreter's lock while it runs.
    """
    return _compiled(typeof(dtype))[0]  # type: ignore[no-untyped-call]


@cache
def _compiled(kind: Any) -> tuple[Any, Any]:
    with own_cache():
        made: Any = cfunc(types.void(types.CPointer(kind)), cache=True)(driver.from_table)  # type: ignore[no-untyped-call]
    # The code lives as long as what numba has made of it.
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(made.address), made
