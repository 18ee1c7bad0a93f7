"""A training step as one CUDA graph: launched at once, where Python would launch each kernel."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["CapturedStep"]

# Steps before a capture: libraries choose and load their kernels, and ours are compiled.
_WARM_UP = 3


class CapturedStep:
    """Captures a step for batches of one size; others are taken as they come.

    Every call is a step of the training, the first ones too. What a capture fixes, a learning rate
    among it, is to be forgotten where it changes.

    Parameters
    ----------
    size : int
        Images of a batch that is captured.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._warm = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def forget(self) -> None:
        """Capture anew at the next step."""
        self._graph = None

    def take(
        self, step: Callable[[Tensor, Tensor], Tensor], images: Tensor, targets: Tensor
    ) -> Tensor:
        """One step, the loss of it.

        Parameters
        ----------
        step : callable (images, targets) -> loss
            The same each time, without any wait for the device. Not kept: its owner holds this.
        images, targets : Tensor
        """
        if len(images) != self._size:
            return step(images, targets)
        if self._warm < _WARM_UP:
            self._warm += 1
            return self._on_another_stream(step, images, targets)
        if self._graph is None:
            self._images, self._targets = torch.empty_like(images), torch.empty_like(targets)
            graph = torch.cuda.CUDAGraph()
            # Other threads may read ahead meanwhile. Back on this stream if the capture fails.
            with (
                torch.cuda.stream(torch.cuda.current_stream()),
                torch.cuda.graph(graph, capture_error_mode="thread_local"),
            ):
                self._loss = step(self._images, self._targets)
            self._graph = graph
        self._images.copy_(images)
        self._targets.copy_(targets)
        self._graph.replay()
        return self._loss.clone()

    def _on_another_stream(
        self, step: Callable[[Tensor, Tensor], Tensor], images: Tensor, targets: Tensor
    ) -> Tensor:
        """A step on another stream, as torch asks for before a capture."""
        current, other = torch.cuda.current_stream(), torch.cuda.Stream()
        other.wait_stream(current)
        with torch.cuda.stream(other):
            loss = step(images, targets)
        current.wait_stream(other)
        loss.record_stream(current)
        return loss
