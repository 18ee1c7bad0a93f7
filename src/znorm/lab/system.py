"""Information on this system: versions, devices, threads, and the kernels that serve them."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

import znorm
from znorm import kernels
from znorm.lab.device import resolve_precision
from znorm.lab.versions import version_of

__all__ = ["doctor", "processor"]

_PACKAGES = ("torch", "numba", "triton", "numpy", "scipy", "monai")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def doctor() -> dict[str, Any]:
    """Look at this machine: versions, devices, threads, and the kernels in use.

    Kernels are tried, not only looked for: the first time on a machine this compiles them, which
    takes seconds.

    Returns
    -------
    dict
        ``versions``: by package, None where one is missing. ``devices``: name, what it is, and
        gigabytes of memory where they are known. ``threads``: those that torch uses, and the cores
        that this process may use. ``kernels``: for each device and dtype the kernels that serve
        it, and why not the compiled ones. ``precision``: what ``auto`` takes for a net of dense
        convolutions, by device.

    Examples
    --------
    >>> from znorm import lab
    >>> system = lab.doctor()
    >>> system["versions"]["znorm"]
    '0.1.0'
    >>> [entry["kernel"] for entry in system["kernels"] if entry["dtype"] == "float64"][0]
    'reference'
    """
    devices = _devices()
    return {
        "versions": {
            "znorm": znorm.__version__,
            "python": platform.python_version(),
            **{name: version_of(name) for name in _PACKAGES},
        },
        "platform": platform.platform(),
        "devices": devices,
        "threads": {"torch": torch.get_num_threads(), "cores": _cores()},
        "kernels": [
            _kernel(torch.device(device["device"]), dtype)
            for device in devices
            for dtype in _DTYPES
        ],
        "precision": {
            device["device"]: resolve_precision("auto", device["device"], "resnet56")
            for device in devices
        },
    }


def _kernel(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    reason = kernels.why_not(device, dtype)
    return {
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "kernel": kernels.reference.NAME if reason else kernels.name_on(device),
        "why": reason,
    }


def _devices() -> list[dict[str, Any]]:
    devices: list[dict[str, Any]] = [
        {"device": "cpu", "name": processor(), "memory_gb": _memory_gb()}
    ]
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        devices.append(
            {
                "device": f"cuda:{number}",
                "name": about.name,
                "memory_gb": round(about.total_memory / 1e9, 1),
            }
        )
    if torch.backends.mps.is_available():
        devices.append({"device": "mps", "name": processor(), "memory_gb": None})
    return devices


def processor() -> str:
    """The CPU's own name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
