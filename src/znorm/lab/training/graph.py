"""Work of a fixed shape as one CUDA graph: launched at once, where Python launches each kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache

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
            with _capture(graph):
                self._made = work(self._images, self._targets)
            self._graph = graph
        self._images.copy_(images)
        self._targets.copy_(targets)
        self._graph.replay()
        return tuple(tensor.clone() for tensor in self._made)

    def _on_another_stream(self, work: Work, images: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        """On another stream, as torch asks for before a capture."""
        current, other = torch.cuda.current_stream(), _warm_up_stream(torch.cuda.current_device())
        other.wait_stream(current)
        with torch.cuda.stream(other):
            made = work(images, targets)
        current.wait_stream(other)
        for tensor in made:
            tensor.record_stream(current)
        return made


@contextmanager
def _capture(graph: torch.cuda.CUDAGraph) -> Iterator[None]:
    """Capture into memory of the graph's own, cuBLAS's workspaces included.

    cuBLAS keeps a workspace for each stream, and torch captures everything on one stream: graphs
    that are replayed side by side would write to the same place, and one that is let go would take
    it from the others. Emptied before a capture, they are allocated anew within it; emptied after
    it, nobody else uses them.
    """
    pool = torch.cuda.graph_pool_handle()
    torch._C._cuda_clearCublasWorkspaces()
    try:
        # Other threads may read ahead meanwhile. Back on this stream if the capture fails.
        with (
            torch.cuda.stream(torch.cuda.current_stream()),
            torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"),
        ):
            yield
    except BaseException:
        _end_allocation(pool)
        raise
    finally:
        torch._C._cuda_clearCublasWorkspaces()


def _end_allocation(pool: tuple[int, int]) -> None:
    """Take no more memory from the pool of a capture that has failed.

    A torch before 2.12 goes on with that, and then refuses each later capture.
    """
    # Of today's torch, and of older ones.
    names = ("_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool")
    end = next((getattr(torch._C, name) for name in names if hasattr(torch._C, name)), None)
    if end is not None:
        with suppress(RuntimeError):  # it has ended
            end(torch.cuda.current_device(), pool)


@cache
def _warm_up_stream(device: int) -> torch.cuda.Stream:
    """One for all: torch has 32 streams to give, and each keeps a workspace of cuBLAS."""
    return torch.cuda.Stream(device)
