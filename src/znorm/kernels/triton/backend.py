"""The Triton kernels as a backend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from znorm.kernels.triton.batch import DTYPES, Batch
from znorm.kernels.triton.updates import RULES
from znorm.layers import LayerSlice

__all__ = ["Triton"]


class Triton:
    """Kernels for a GPU, compiled by Triton; see `base.Backend`."""

    name = "triton"
    dtypes = tuple(DTYPES)
    update_rules = tuple(RULES)

    def batch(
        self,
        indices: Sequence[int],
        tensors: Sequence[Tensor],
        slices: Sequence[Sequence[LayerSlice]],
        *,
        units: int,
        measures: bool,
    ) -> Batch:
        return Batch(indices, tensors, slices, units=units)

    def rests_on(self) -> None:
        return None

    @contextmanager
    def first_use(self, dtype: torch.dtype, device: torch.device) -> Iterator[None]:
        """Kernels are compiled outside of what a CUDA graph captures.

        Raises
        ------
        RuntimeError
            If one is being captured.
        """
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "znorm: the first step compiles kernels, which a CUDA graph cannot capture; take "
                "one step before the capture"
            )
        yield
