"""The experiments half: what the command line does, as functions.

>>> from znorm import lab
>>> spec = lab.resolve({"method": "znorm", "seed": 3})
>>> spec.task, spec.model, spec.seed
('pcam_mini', 'resnet20', 3)
"""

from __future__ import annotations

from znorm.lab import metrics, models
from znorm.lab.catalogue import names
from znorm.lab.comparison import compare, report, run, status
from znorm.lab.errors import ConfigurationError, DataError, DiskFullError, Interrupted
from znorm.lab.spec import RunSpec, resolve
from znorm.lab.store import Run

__all__ = [
    "ConfigurationError",
    "DataError",
    "DiskFullError",
    "Interrupted",
    "Run",
    "RunSpec",
    "compare",
    "metrics",
    "models",
    "names",
    "report",
    "resolve",
    "run",
    "status",
]
