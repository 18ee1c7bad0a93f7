"""Kernels: what reads and writes gradients and weights, and the choice between them.

`reference` is torch operations on any device. `cpu` is compiled by numba, from the extra
``znorm[cpu]``; `cuda` by Triton, which comes with torch on Linux. ``ZNORM_KERNELS=reference`` in
the environment leaves both alone; ``ZNORM_KERNELS=triton`` takes those for a GPU on a CPU, too,
where ``TRITON_INTERPRET=1`` lets them run.
"""

from __future__ import annotations

import os
import threading
import warnings
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

from znorm.kernels import reference

__all__ = ["compiled", "name_of", "name_on", "reference", "why_not"]

_lock = threading.Lock()
_loaded: dict[str, ModuleType] = {}  # by type of device
_refused: dict[str, str] = {}  # why they are not used, once they have been tried
_COMPILED = {"cpu": "znorm.kernels.cpu", "cuda": "znorm.kernels.cuda"}
_ASKED = "ZNORM_KERNELS"
_TURNED_OFF = f"{_ASKED}=reference is set"
_BRINGS = {
    "cpu": "pip install 'znorm[cpu]' brings numba",
    "cuda": "Triton comes with torch on Linux; pip install triton",
}


def compiled(kind: str = "cpu") -> ModuleType | None:
    """The compiled kernels for a type of device, loaded on first use; None where there are none.

    Warns
    -----
    UserWarning
        Once, if numba or Triton is missing or cannot compile.
    """
    # What torch.compile traces is torch's to compile.
    if kind in _refused or kind not in _COMPILED or reference.is_traced():
        return None
    if kind not in _loaded:
        with _lock:
            if kind not in _loaded and kind not in _refused:
                found = _load(kind)
                if isinstance(found, str):
                    _refused[kind] = found
                else:
                    _loaded[kind] = found
    return _loaded.get(kind)


def _load(kind: str) -> ModuleType | str:
    """The kernels, or why there are none."""
    if _asked() == "reference":
        return _TURNED_OFF
    which = "cuda" if _asked() == "triton" else kind
    try:
        # Triton's own interpreter runs what is meant for a GPU: for whoever tests these kernels.
        if which != kind and os.environ.get("TRITON_INTERPRET") != "1":
            raise RuntimeError("Triton runs on a CPU with TRITON_INTERPRET=1 alone")
        return import_module(_COMPILED[which])
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if isinstance(error, ImportError):
            reason += f"; {_BRINGS[which]}"
        warnings.warn(
            f"znorm: the compiled kernels for {kind} are not used ({reason}); steps take the "
            f"slower reference kernels; {_ASKED}=reference silences this",
            stacklevel=2,
        )
        return reason


def _asked() -> str:
    return os.environ.get(_ASKED, "")


_COMPILED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def why_not(device: torch.device, dtype: torch.dtype, *, load: bool = True) -> str | None:
    """What keeps the compiled kernels from tensors of a kind, in a few words; None: nothing.

    Parameters
    ----------
    device, dtype
    load : bool, default True
        Whether they are tried, which can take seconds at the first time; else it is told as far
        as that goes without.
    """
    if device.type not in _COMPILED:
        return f"there are no compiled kernels for {device.type}"
    if dtype not in _COMPILED_DTYPES:
        takes = ", ".join(str(kind).removeprefix("torch.") for kind in _COMPILED_DTYPES)
        return f"the compiled kernels take {takes}, not {str(dtype).removeprefix('torch.')}"
    module = compiled(device.type) if load else _loaded.get(device.type)
    if module is not None:
        works = module.ready(dtype, device) if load else not module.is_refused(dtype, device)
        name = str(dtype).removeprefix("torch.")
        return None if works else f"they cannot be compiled for {name} here"
    if load or device.type in _refused:
        return _refused.get(device.type)
    if _asked() == "reference":
        return _TURNED_OFF
    package = "numba" if device.type == "cpu" else "triton"
    return None if find_spec(package) else f"{package} is missing; {_BRINGS[device.type]}"


def name_of(tensor: Tensor, stretched: bool) -> str:
    """Which kernels serve a tensor; ``stretched`` if each of its units is one of memory."""
    served = stretched and why_not(tensor.device, tensor.dtype, load=False) is None
    return name_on(tensor.device) if served else reference.NAME


def name_on(device: torch.device) -> str:
    """The name of the compiled kernels for a device: ``cpu``, or ``triton``."""
    return "triton" if device.type == "cuda" or _asked() == "triton" else "cpu"
