"""Data sets: one file each."""

from __future__ import annotations

from znorm.lab.datasets.dataset import Dataset, Part

__all__ = ["Dataset", "Part"]
