"""Kernels for a GPU, compiled by Triton."""

from __future__ import annotations

from znorm.kernels.cuda.lists import parts_of
from znorm.kernels.cuda.part import Part
from znorm.kernels.cuda.ready import is_refused, ready

__all__ = ["Part", "is_refused", "parts_of", "ready"]
