"""Kernels for a CPU, compiled by numba."""

from __future__ import annotations

from znorm.kernels.cpu.cache import own_cache

with own_cache():
    from znorm.kernels.cpu.lists import Part, parts_of
    from znorm.kernels.cpu.ready import ready

__all__ = ["NAME", "Part", "parts_of", "ready"]

NAME = "cpu"
