"""The device, the precision and the captures of a run where the user leaves them open."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from znorm.lab.errors import ConfigurationError
from znorm.lab.models import MODELS, is_external
from znorm.lab.optimizers import OPTIMIZERS
from znorm.lab.own_code import is_own
from znorm.lab.registry import lookup
from znorm.transforms import TRANSFORMS

__all__ = ["check_compiler", "is_there", "resolve_device", "resolve_precision", "why_not_captured"]

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


def check_compiler(device: str) -> None:
    """See that torch.compile works for a device.

    Raises
    ------
    ConfigurationError
    """

    def twice(numbers: torch.Tensor) -> torch.Tensor:
        return numbers + numbers

    try:
        torch.compile(twice, dynamic=False)(torch.ones(2, device=device))
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        raise ConfigurationError(
            f"compile: torch.compile does not work here for {device} ({type(error).__name__}: "
            f"{text}); leave it out"
        ) from None


def why_not_captured(
    model: str,
    optimizer: str,
    transform: Iterable[Mapping[str, object]],
    loss: str = "cross_entropy",
) -> str | None:
    """The reason why steps on a GPU are not captured where the user leaves it open; None: they are.

    A capture is right where nothing looks at a number on the device to decide what comes next: a
    graph would go on as that was decided once. Of what is built in that is known, of others' code
    it is not.

    Parameters
    ----------
    model, optimizer, loss : str
        As a specification names them.
    transform : iterable of mapping
        The method's links, each by its name.
    """
    own = [name for link in transform for name in link if not _is_built_in(name)]
    others = [model] if is_external(model) else []
    others += [] if optimizer in OPTIMIZERS else [optimizer]
    others += [loss] if is_own(loss) else []
    others += own
    if not others:
        return None
    return f"it is not known whether {others[0]} waits for the GPU within a step"


def _is_built_in(transform: str) -> bool:
    return transform in TRANSFORMS and TRANSFORMS[transform].__module__.startswith("znorm.")


def _cpu_has_bfloat16() -> bool:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "").split()
    return "avx512_bf16" in flags or "amx_bf16" in flags
