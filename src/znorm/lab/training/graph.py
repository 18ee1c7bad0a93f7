"""A training step as one CUDA graph: launched at once, where Python would launch each kernel."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["CapturedStep"]

# Steps before a capture: libraries choose and load their kernels, and ours are compiled.
_WARM_UP = 3


class CapturedStep:
    """Captures a step for batches of the first one's shape; others are taken as they come.

    Every call is a step of the training, the first ones too. What a capture fixes, a learning rate
    among it, is to be forgotten where it changes.

    Parameters
    ----------
    step : callable (images, targets) -> loss
        Without any wait for the device.
    """

    def __init__(self, step: Callable[[Tensor, Tensor], Tensor]) -> None:
        self._step = step
        self._shape: torch.Size | None = None
        self._warm = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def forget(self) -> None:
        """Capture anew at the next step."""
        self._graph = None

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        if self._shape is None:
            self._shape = images.shape
        if images.shape != self._shape:
            return self._step(images, targets)
        if self._warm < _WARM_UP:
            self._warm += 1
            return self._beside(images, targets)
        if self._graph is None:
            self._images, self._targets = torch.empty_like(images), torch.empty_like(targets)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._loss = self._step(self._images, self._targets)
        self._images.copy_(images)
        self._targets.copy_(targets)
        self._graph.replay()
        return self._loss.clone()

    def _beside(self, images: Tensor, targets: Tensor) -> Tensor:
        """A step on another stream, as torch asks for before a capture."""
        here, beside = torch.cuda.current_stream(), torch.cuda.Stream()
        beside.wait_stream(here)
        with torch.cuda.stream(beside):
            loss = self._step(images, targets)
        here.wait_stream(beside)
        loss.record_stream(here)
        return loss
