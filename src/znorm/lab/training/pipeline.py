"""From images in memory, or mapped from a file, to the batches that a model sees."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from znorm.lab.datasets import Dataset, Part
from znorm.lab.training.sampler import augment_

__all__ = ["Batch", "Pipeline"]

# Loader threads of a set that is mapped from a file, where the user leaves it open.
WORKERS = 2
# Pixels of a batch in evaluation: 256 images of 32x32, or 4 of 256x256.
EVALUATION_PIXELS = 1 << 18


@dataclass(frozen=True)
class Batch:
    """What one step trains on.

    Parameters
    ----------
    images : Tensor of shape (N, C, H, W), float32
        Normalized, channels last.
    targets : Tensor
        Labels (N,) int64, or masks (N, H, W) uint8.
    digest : bytes
        A hash of the pixels as augmented, and of the targets.
    """

    images: Tensor
    targets: Tensor
    digest: bytes


class Pipeline:
    """Makes batches: gather and augment as uint8, then normalize by the training set's statistics.

    Parameters
    ----------
    dataset : Dataset
    augment : str
        As :func:`znorm.lab.training.sampler.augment_` takes it.
    seed : int
    device : torch.device
    workers : int, optional
        Threads that read ahead; by default 2 for a set that is mapped from a file, else none.
        Batches are the same whatever their number.
    """

    def __init__(
        self,
        dataset: Dataset,
        augment: str,
        seed: int,
        device: torch.device,
        workers: int | None = None,
    ) -> None:
        self.dataset = dataset
        self.augment = augment
        self.seed = seed
        self.device = device
        self.workers = (WORKERS if dataset.train.mapped else 0) if workers is None else workers
        mean, std = dataset.statistics
        self._shift = mean.to(device)[:, None, None]
        self._factor = (1 / std).to(device)[:, None, None]

    def training_batches(self, epoch: int, plan: Sequence[Tensor]) -> Iterator[Batch]:
        """A batch for each set of indices of the plan, in order."""
        if not self.workers:
            yield from (self.training_batch(epoch, index) for index in plan)
            return
        with ThreadPoolExecutor(self.workers) as pool:
            waiting: deque[Future[Batch]] = deque()
            rest = iter(plan)
            try:
                for index in rest:
                    waiting.append(pool.submit(self.training_batch, epoch, index))
                    if len(waiting) > 2 * self.workers:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def training_batch(self, epoch: int, index: Tensor) -> Batch:
        """The training images at ``index``, augmented as f(seed, epoch, index)."""
        part = self.dataset.train
        images, targets = part.images[index], part.targets[index]
        masks = targets if part.has_masks else None
        augment_(images, self.augment, self.seed, epoch, index, masks)
        digest = hashlib.sha256(images.numpy().tobytes() + targets.numpy().tobytes()).digest()
        return Batch(self._normalized(images), targets.to(self.device), digest)

    def evaluation_batches(self, part: Part) -> Iterator[tuple[Tensor, Tensor]]:
        """A part's images and targets in order, not augmented."""
        height, width = part.images.shape[2:]
        size = max(1, EVALUATION_PIXELS // (height * width))
        for start in range(0, len(part), size):
            images = self._normalized(part.images[start : start + size])
            yield images, part.targets[start : start + size].to(self.device)

    def _normalized(self, images: Tensor) -> Tensor:
        # Channels last at the end: broadcasting over channels is three times slower there.
        wide = images.to(self.device, torch.float32, copy=True).sub_(self._shift).mul_(self._factor)
        return wide.contiguous(memory_format=torch.channels_last)
