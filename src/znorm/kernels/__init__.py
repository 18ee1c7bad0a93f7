"""Kernels: what reads and writes gradients and weights, and the choice between them.

`reference` is torch operations on any device. `cpu` is compiled by numba, from the extra
``znorm[cpu]``. ``ZNORM_KERNELS=reference`` in the environment leaves the latter alone.
"""

from __future__ import annotations

import os
import threading
import warnings
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

from znorm.kernels import reference

__all__ = ["compiled", "name_of", "reference", "why_not"]

_lock = threading.Lock()
_loaded: ModuleType | None = None
_refused: str | None = None  # why they are not used, once they have been tried
_TURNED_OFF = "ZNORM_KERNELS=reference is set"


def compiled() -> ModuleType | None:
    """The compiled kernels for a CPU, loaded on first use; None where there are none.

    Warns
    -----
    UserWarning
        Once, if numba is missing or cannot compile.
    """
    global _loaded, _refused
    if _refused is not None or reference.is_traced():
        return None
    if _loaded is None:
        with _lock:
            if _loaded is None and _refused is None:
                found = _load()
                _loaded, _refused = (None, found) if isinstance(found, str) else (found, None)
    return _loaded


def _load() -> ModuleType | str:
    """The kernels, or why there are none."""
    if _is_turned_off():
        return _TURNED_OFF
    try:
        from znorm.kernels import cpu
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if isinstance(error, ImportError):
            reason += "; pip install 'znorm[cpu]' brings numba"
        warnings.warn(
            f"znorm: the compiled CPU kernels are not used ({reason}); steps take the slower "
            "reference kernels; ZNORM_KERNELS=reference silences this",
            stacklevel=2,
        )
        return reason
    return cpu


def _is_turned_off() -> bool:
    return os.environ.get("ZNORM_KERNELS", "") == "reference"


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
    if device.type != "cpu":
        return f"there are no compiled kernels for {device.type}"
    if dtype not in _COMPILED_DTYPES:
        takes = ", ".join(str(kind).removeprefix("torch.") for kind in _COMPILED_DTYPES)
        return f"the compiled kernels take {takes}, not {str(dtype).removeprefix('torch.')}"
    module = compiled() if load else _loaded
    if module is not None:
        works = module.ready(dtype) if load else not module.is_refused(dtype)
        name = str(dtype).removeprefix("torch.")
        return None if works else f"they cannot be compiled for {name} here"
    if load or _refused is not None:
        return _refused
    if _is_turned_off():
        return _TURNED_OFF
    return None if find_spec("numba") else "numba is missing; pip install 'znorm[cpu]' brings it"


def name_of(tensor: Tensor, stretched: bool) -> str:
    """Which kernels serve a tensor; ``stretched`` if each of its units is one of memory."""
    served = stretched and why_not(tensor.device, tensor.dtype, load=False) is None
    return "cpu" if served else reference.NAME
