"""Data sets: one file each, which declares a :class:`Task`; :mod:`znorm.lab.tasks` lists them."""

from __future__ import annotations

from znorm.lab.datasets.data_spec import DataSpec
from znorm.lab.datasets.dataset import Dataset, Split
from znorm.lab.datasets.source import DataSource, Origin
from znorm.lab.datasets.task import Task

__all__ = ["DataSource", "DataSpec", "Dataset", "Origin", "Split", "Task"]
