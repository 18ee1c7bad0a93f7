"""torch's own OpenMP threads, which are awake after a backward and would be in the way.

torch brings GNU's OpenMP library on Linux. Its threads spin for a while after each parallel piece
of work: threads of our own would have to share the cores with them. Elsewhere, and in a forked
child, in which the library would wait for threads that are not there, `threads` has our own.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

__all__ = ["call_in_team", "has_team"]

_forked = False


@cache
def _parallel() -> Callable[..., None] | None:
    """``GOMP_parallel`` of the library that torch has loaded."""
    if not hasattr(os, "RTLD_NOLOAD"):
        return None
    place = Path(torch.__file__).parent
    paths = [*place.glob("lib/libgomp*.so*"), *place.parent.glob("torch.libs/libgomp*.so*")]
    for path in paths:
        try:
            library = ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD | os.RTLD_NOW)
            function: Any = library.GOMP_parallel
        except (OSError, AttributeError):
            continue
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        function.restype = None
        return function  # type: ignore[no-any-return]
    return None


def has_team() -> bool:
    """True if torch's threads can be had."""
    return not _forked and _parallel() is not None


def call_in_team(function: Any, table: int, threads: int) -> None:
    """Call a C function with the address of a table in so many threads, or fewer, at once."""
    parallel = _parallel()
    assert parallel is not None
    parallel(ctypes.cast(function, ctypes.c_void_p), table, threads, 0)


def _after_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
