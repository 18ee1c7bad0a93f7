"""Whether the kernels compile and are right, for each dtype on each device."""

from __future__ import annotations

import threading
import warnings

import torch

from znorm.kernels.cuda.part import Part
from znorm.layers import Layer, Layers
from znorm.rows import Row

__all__ = ["is_refused", "ready"]

_ready: dict[tuple[torch.dtype, torch.device], bool] = {}
_lock = threading.Lock()


def ready(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the kernels for a dtype work on a device; compiles them at the first call.

    Warns
    -----
    UserWarning
        Once, if they cannot be compiled.

    Raises
    ------
    RuntimeError
        If they have not been tried, and a CUDA graph is being captured.
    """
    key = (dtype, device)
    if key not in _ready:
        with _lock:
            if key not in _ready:
                if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                    raise RuntimeError(
                        "znorm: the first step compiles kernels, which a CUDA graph cannot "
                        "capture; take one step before the capture"
                    )
                _ready[key] = _try_out(dtype, device)
    return _ready[key]


def is_refused(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether they have been tried, and do not work."""
    return _ready.get((dtype, device)) is False


def _try_out(dtype: torch.dtype, device: torch.device) -> bool:
    name = f"{str(dtype).removeprefix('torch.')} on {device}"
    try:
        held = torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=dtype, device=device)
        layer = Layer(None, (4,), (), 0)
        row = Row("", (4,), (True,), "", Layers(1), (layer,), 1, "")
        part = Part([0], [row], [held], device, dtype)
        part.z_score_([held], (0.0, 1.0, 0.0, 0.0), None, None, None)
        right = held.tolist() == [-2.0, -1.0, 0.0, 3.0]
        reason = f"a centered tensor came out as {held.tolist()}"
    except Exception as error:
        right, reason = False, " ".join(str(error).split())[:200]
    if not right:
        warnings.warn(
            f"znorm: the GPU kernels for {name} cannot be used ({reason}); steps take the slower "
            "reference kernels; ZNORM_KERNELS=reference silences this",
            stacklevel=2,
        )
    return right
