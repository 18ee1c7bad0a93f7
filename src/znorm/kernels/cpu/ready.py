"""Compiling a dtype's kernels, or loading them from numba's cache on disk."""

from __future__ import annotations

import sys
import threading
import warnings
from typing import Any

import torch
from numba.core.event import Listener, register, unregister

from znorm.kernels.cpu import drivers
from znorm.kernels.cpu.plan import Plan
from znorm.layers import Layer

__all__ = ["is_refused", "ready"]

_ready: dict[torch.dtype, bool] = {}
_lock = threading.Lock()


def ready(dtype: torch.dtype, device: torch.device | None = None) -> bool:
    """Whether the kernels for a dtype work here; compiles them at the first call.

    Loading takes half a second, compiling seconds, once on a machine: then a line on stderr says
    so.

    Warns
    -----
    UserWarning
        Once, if they cannot be compiled.
    """
    if dtype not in _ready:
        with _lock:
            if dtype not in _ready:
                _ready[dtype] = _try_out(dtype)
    return _ready[dtype]


def is_refused(dtype: torch.dtype, device: torch.device | None = None) -> bool:
    """Whether they have been tried, and do not work."""
    return _ready.get(dtype) is False


class _Teller(Listener):
    """Prints a line as soon as anything is compiled, and nothing where all is on disk."""

    def __init__(self, line: str) -> None:
        self._line: str | None = line

    def on_start(self, event: Any) -> None:
        if self._line is not None:
            print(self._line, file=sys.stderr, flush=True)
            self._line = None

    def on_end(self, event: Any) -> None: ...


def _try_out(dtype: torch.dtype) -> bool:
    name = str(dtype).removeprefix("torch.")
    line = f"znorm: compiling the CPU kernels for {name}; they are kept for the next time"
    teller = _Teller(line)
    register("numba:compile", teller)  # type: ignore[no-untyped-call]
    try:
        held = torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=dtype, device="cpu")
        layer = Layer(None, (4,), (), 0)
        plan = Plan([(4,)], [(1,)], [(layer,)], dtype, units=1, measures=True, threads=1)
        plan.addresses[1, 0] = held.data_ptr()
        plan.run(drivers.AFFINE, (0.0, 1.0, 0.0, 0.0))
        right = held.tolist() == [-2.0, -1.0, 0.0, 3.0]
        reason = f"a centered tensor came out as {held.tolist()}"
    except Exception as error:
        right, reason = False, " ".join(str(error).split())[:200]
    finally:
        unregister("numba:compile", teller)  # type: ignore[no-untyped-call]
    if not right:
        warnings.warn(
            f"znorm: the CPU kernels for {name} cannot be used ({reason}); steps take the slower "
            "reference kernels; ZNORM_KERNELS=reference silences this",
            stacklevel=2,
        )
    return right
