"""The environment of a run, as its env.json holds it."""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import Any

import torch

import znorm
from znorm.lab.versions import version_of

__all__ = ["environment"]


def environment() -> dict[str, Any]:
    """Versions of packages, the processor, threads and GPU, and the command that was given."""
    packages = ("torch", "numpy", "scipy", "scikit-learn", "pydantic")
    return {
        "znorm": znorm.__version__,
        "python": platform.python_version(),
        "packages": {name: version_of(name) for name in packages},
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "command": sys.argv[1:],
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor()
