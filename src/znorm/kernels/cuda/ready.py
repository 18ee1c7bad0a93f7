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
        found = [held.tolist()]
        options = {
            "ADAM": [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            "SGD": [1.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        }
        for kind, values in options.items():
            weights, one, other = (torch.zeros_like(held) for _ in range(3))
            state = {"one": one, "other": other, "step": torch.zeros((), device=device)}
            part.begin([weights], [state], ["one", "other"], [0], [True])
            decided = (0.0, 1.0, 0.0, 0.0)
            part.step_(kind, [held], [values], decided, scale=None, skip=None, receipt=None)
            found.append(weights.nan_to_num().tolist())
        right = found == [[-2.0, -1.0, 0.0, 3.0], [1.0, 1.0, 0.0, -1.0], [2.0, 1.0, 0.0, -3.0]]
        reason = f"a tensor, centered and stepped by, came out as {found}"
    except Exception as error:
        right, reason = False, " ".join(str(error).split())[:200]
    if not right:
        warnings.warn(
            f"znorm: the GPU kernels for {name} cannot be used ({reason}); steps take the slower "
            "reference kernels; ZNORM_KERNELS=reference silences this",
            stacklevel=2,
        )
    return right
