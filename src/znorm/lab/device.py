"""The device and the precision of a run where the user leaves them open."""

from __future__ import annotations

from pathlib import Path

import torch

from znorm.lab.errors import ConfigurationError
from znorm.lab.models import MODELS
from znorm.lab.registry import lookup

__all__ = ["is_there", "resolve_device", "resolve_precision"]

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "float32", "bfloat16")


def is_there(device: str) -> bool:
    """Tell whether this machine has such a device."""
    if device == "cuda":
        return torch.cuda.is_available()
    return device == "cpu" or (device == "mps" and torch.backends.mps.is_available())


def resolve_device(name: str) -> str:
    """A device that is there.

    Raises
    ------
    ConfigurationError
        For an unknown device, or one that this machine does not have.
    """
    lookup("device", name, dict.fromkeys(DEVICES, 0))
    available = {device: is_there(device) for device in ("cuda", "mps", "cpu")}
    if name == "auto":
        return next(device for device, present in available.items() if present)
    if not available[name]:
        present = ", ".join(device for device, here in available.items() if here)
        raise ConfigurationError(f"device {name} is not available here; available: {present}")
    return name


def resolve_precision(name: str, device: str, model: str) -> str:
    """The faster of float32 and bfloat16 for a model on this machine, where ``name`` is "auto".

    A rule, not a trial, since the same command must find its runs again. On a CPU bfloat16 is
    faster only with instructions for it, and not in depthwise convolutions:
    ``benchmarks/train.py`` measures both for every model. What other libraries' models are made of
    is not known before they are built; they take float32.
    """
    lookup("precision", name, dict.fromkeys(PRECISIONS, 0))
    if name != "auto":
        return name
    if device.startswith("cuda"):
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    dense = model in MODELS and not MODELS[model].depthwise
    return "bfloat16" if device == "cpu" and dense and _cpu_has_bfloat16() else "float32"


def _cpu_has_bfloat16() -> bool:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "").split()
    return "avx512_bf16" in flags or "amx_bf16" in flags
