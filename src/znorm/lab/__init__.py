"""The experiments half: what the command line does, as functions.

>>> from znorm import lab
>>> spec = lab.resolve({"method": "znorm", "seed": 3})
>>> spec.task, spec.model, spec.seed
('pcam_mini', 'resnet20', 3)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from znorm.lab import data, metrics, models
    from znorm.lab.api import compare, export_numbers, report, run, status, verify
    from znorm.lab.catalogue import names
    from znorm.lab.errors import (
        ConfigurationError,
        DataError,
        DiskFullError,
        Interrupted,
        MissingDataError,
    )
    from znorm.lab.paper.reproduce import reproduce
    from znorm.lab.prediction import predict
    from znorm.lab.prediction.onnx_file import export_onnx
    from znorm.lab.reporting.receipt import draw_receipt
    from znorm.lab.runs.folder import Run
    from znorm.lab.spec import RunSpec, resolve
    from znorm.lab.system import doctor

__all__ = [
    "ConfigurationError",
    "DataError",
    "DiskFullError",
    "Interrupted",
    "MissingDataError",
    "Run",
    "RunSpec",
    "compare",
    "data",
    "doctor",
    "draw_receipt",
    "export_numbers",
    "export_onnx",
    "metrics",
    "models",
    "names",
    "predict",
    "report",
    "reproduce",
    "resolve",
    "run",
    "status",
    "verify",
]

_HOMES = {
    "api": ("compare", "export_numbers", "report", "run", "status", "verify"),
    "catalogue": ("names",),
    "data": ("data",),
    "errors": (
        "ConfigurationError",
        "DataError",
        "DiskFullError",
        "Interrupted",
        "MissingDataError",
    ),
    "metrics": ("metrics",),
    "models": ("models",),
    "paper.reproduce": ("reproduce",),
    "prediction": ("predict",),
    "prediction.onnx_file": ("export_onnx",),
    "reporting.receipt": ("draw_receipt",),
    "runs.folder": ("Run",),
    "spec": ("RunSpec", "resolve"),
    "system": ("doctor",),
}


def __getattr__(name: str) -> Any:
    # Imported on first use, so that the command line can say which package is missing.
    for home, names in _HOMES.items():
        if name in names:
            module = import_module(f"znorm.lab.{home}")
            return module if name == home else getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
