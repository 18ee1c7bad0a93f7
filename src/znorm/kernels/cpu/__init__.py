"""Kernels for a CPU, compiled by numba."""

from __future__ import annotations

from znorm.kernels.cpu.cache import own_cache

with own_cache():
    from znorm.kernels.cpu.lists import Part, parts_of
    from znorm.kernels.cpu.ready import is_refused, ready

__all__ = ["NAME", "Part", "is_refused", "parts_of", "ready"]

NAME = "cpu"
