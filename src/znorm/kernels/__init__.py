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

__all__ = ["compiled", "name_of", "reference"]

_lock = threading.Lock()
_loaded: ModuleType | None = None
_refused = False


def compiled() -> ModuleType | None:
    """The compiled kernels for a CPU, loaded on first use; None where there are none.

    Warns
    -----
    UserWarning
        Once, if numba is missing or cannot compile.
    """
    global _loaded, _refused
    # What torch.compile traces is torch's to compile.
    if _refused or torch.compiler.is_compiling():
        return None
    if _loaded is None:
        with _lock:
            if _loaded is None and not _refused:
                _loaded = _load()
                _refused = _loaded is None
    return _loaded


def _load() -> ModuleType | None:
    if os.environ.get("ZNORM_KERNELS", "") == "reference":
        return None
    try:
        from znorm.kernels import cpu
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        warnings.warn(
            f"znorm: the compiled CPU kernels are not used ({reason}); steps take the slower "
            "reference kernels; pip install 'znorm[cpu]' brings numba, ZNORM_KERNELS=reference "
            "silences this",
            stacklevel=2,
        )
        return None
    return cpu


def is_expected() -> bool:
    """Whether `compiled` would be tried, as far as can be told without loading it."""
    if _refused or os.environ.get("ZNORM_KERNELS", "") == "reference":
        return False
    return _loaded is not None or find_spec("numba") is not None


_COMPILED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def name_of(tensor: Tensor, stretched: bool) -> str:
    """Which kernels serve a tensor; ``stretched`` if each of its units is one of memory."""
    served = tensor.device.type == "cpu" and tensor.dtype in _COMPILED_DTYPES and stretched
    return "cpu" if served and is_expected() else reference.NAME
