"""Kernels for a CPU, compiled by numba.

`backend` is what the library sees, `batch` tensors as kernels take them, `plan` where their units
lie in memory. `driver` is one thread's share of a step, of the loops in `kernels` and the update
rules in `updates`, which are written in the vectors of `vector`; `intrinsics` is what numba lacks.
`entry` compiles them to one C function, called in torch's own threads (`openmp`) or in those of
`threads`; `cache` says where it is kept.
"""

from __future__ import annotations

from znorm.kernels.cpu.cache import own_cache

with own_cache():
    from znorm.kernels.cpu.backend import CPU

__all__ = ["BACKEND"]

BACKEND = CPU()
