"""Kernels for a GPU, compiled by Triton.

`backend` is what the library sees, `batch` the launches, `plan` where the units of tensors lie in
memory, `buffers` what changes from step to step. `kernels` is what runs on the device, with the
update rules of `updates`.
"""

from __future__ import annotations

from znorm.kernels.triton.backend import Triton

__all__ = ["BACKEND"]

BACKEND = Triton()
