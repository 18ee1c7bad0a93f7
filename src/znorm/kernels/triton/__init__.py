"""Kernels for a GPU, compiled by Triton.

`backend` is what the library sees, `batch` the launches, `plan` where the units of tensors lie in
memory, `buffers` what changes from step to step, `sizes` what belongs to a card. `kernels` and
`clamp` are what runs on the device, with the update rules of `updates`, through `access` to memory.
"""

from __future__ import annotations

from znorm.kernels.triton.backend import Triton

__all__ = ["BACKEND"]

BACKEND = Triton()
