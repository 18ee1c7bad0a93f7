"""Work of a fixed shape as one CUDA graph: launched at once, where Python launches each kernel."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["CapturedWork"]

# Calls before a capture: libraries choose and load their kernels, and ours are compiled.
_WARM_UP = 3

# What is done to a batch: images and targets in, tensors out.
Work = Callable[[Tensor, Tensor], tuple[Tensor, ...]]


class CapturedWork:
    """Captures what is done to batches of one size; others are taken as they come.

    Every call does the work, the first ones too. What a capture fixes, a learning rate among it, is
    to be forgotten where it changes.

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
        """Capture anew at the next call."""
        self._graph = None

    def take(self, work: Work, images: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        """Do the work on one batch.

        Parameters
        ----------
        work : callable (images, targets) -> tuple of Tensor
            The same each time, without any wait for the device. Not kept: its owner holds this.
        images, targets : Tensor

        Returns
        -------
        tuple of Tensor
            Copies, which the next call leaves alone.
        """
        if len(images) != self._size:
            return work(images, targets)
        if self._warm < _WARM_UP:
            self._warm += 1
            return self._on_another_stream(work, images, targets)
        if self._graph is None:
            self._images, self._targets = torch.empty_like(images), torch.empty_like(targets)
            graph = torch.cuda.CUDAGraph()
            # Other threads may read ahead meanwhile. Back on this stream if the capture fails.
            with (
                torch.cuda.stream(torch.cuda.current_stream()),
                torch.cuda.graph(graph, capture_error_mode="thread_local"),
            ):
                self._made = work(self._images, self._targets)
            self._graph = graph
        self._images.copy_(images)
        self._targets.copy_(targets)
        self._graph.replay()
        return tuple(tensor.clone() for tensor in self._made)

    def _on_another_stream(self, work: Work, images: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        """On another stream, as torch asks for before a capture."""
        current, other = torch.cuda.current_stream(), torch.cuda.Stream()
        other.wait_stream(current)
        with torch.cuda.stream(other):
            made = work(images, targets)
        current.wait_stream(other)
        for tensor in made:
            tensor.record_stream(current)
        return made
