"""Lists of gradients as the GPU kernels take them: which fit, in plans that are kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from znorm.kernels.cuda.loops import INTERPRETED
from znorm.kernels.cuda.part import DTYPES, Part
from znorm.kernels.cuda.ready import ready
from znorm.rows import Row

__all__ = ["parts_of"]


def parts_of(
    rows: Sequence[Row],
    tensors: Sequence[Tensor | None],
    *,
    measures: bool,
    everything: bool,
    cache: dict[Any, tuple[Any, list[Part]]],
) -> list[Part]:
    """The rows whose tensors kernels serve, by device and dtype.

    Parameters
    ----------
    rows, tensors
        Of a layout, in its order.
    measures : bool
        Whether units are measured; here that makes no difference.
    everything : bool
        Whether rows of which nothing is measured are among them.
    cache : dict
        Where plans are kept from step to step.
    """
    kind = "cpu" if INTERPRETED else "cuda"
    devices = {t.device for t in tensors if t is not None and t.device.type == kind}
    key = ("cuda", everything)
    # What a plan depends on. Addresses are written anew each time.
    seen = [
        None if t is None else (t.dtype, t.stride(), t.device, type(t), t.is_neg()) for t in tensors
    ]
    known = cache.get(key)
    if known is not None and known[0] == seen:
        return known[1]
    parts: list[Part] = []
    for device in sorted(devices, key=str):
        for dtype in DTYPES:
            numbers = [
                number
                for number, (row, tensor) in enumerate(zip(rows, tensors, strict=True))
                if tensor is not None
                and tensor.device == device
                and tensor.dtype == dtype
                and (row.layers or everything)
                and row.fits_kernels(tensor)
            ]
            if numbers and ready(dtype, device):
                parts.append(Part(numbers, rows, tensors, device, dtype))
    cache[key] = (seen, parts)
    return parts
