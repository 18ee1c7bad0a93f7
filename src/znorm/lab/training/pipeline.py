"""From images in memory, or mapped from a file, to the batches that a model sees."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from znorm.lab.datasets import Dataset, Split
from znorm.lab.datasets.augmentation import augment_as_drawn_, drawn
from znorm.lab.training.checksum import checksum

__all__ = ["Batch", "Pipeline"]

# Loader threads of a set that is mapped from a file, where the user leaves it open.
WORKERS = 2
# Pixels of a batch in evaluation: 256 images of 32x32, or 4 of 256x256. A GPU is idle most of the
# time with so few; it takes eight times as many.
EVALUATION_PIXELS = 1 << 18
EVALUATION_PIXELS_ON_GPU = 1 << 21


@dataclass(frozen=True)
class Batch:
    """The images and targets of one step.

    Parameters
    ----------
    images : Tensor of shape (N, C, H, W), float32
        Normalized, channels last.
    targets : Tensor
        Labels (N,) int64, or masks (N, H, W) uint8.
    checksum : Tensor without dims, int64
        Of the pixels as augmented, and of the targets.
    """

    images: Tensor
    targets: Tensor
    checksum: Tensor


class Pipeline:
    """Makes batches: gather and augment as uint8, then normalize by the training set's statistics.

    On a GPU a set that fits in memory is copied there once, and all of this is done there; what an
    epoch draws is copied at its start, so that no step waits.

    Parameters
    ----------
    dataset : Dataset
    augment : str
        As :func:`znorm.lab.datasets.augmentation.augment_` takes it.
    seed : int
    device : torch.device
    workers : int, optional
        Threads that read ahead; by default 2 for a set that is mapped from a file, else none.
        Batches are the same whatever their number.
    statistics : two Tensors of shape (C,), optional
        Mean and standard deviation that images are normalized by, from 0 to 255; by default those
        of the training images.
    micro_batch : int, optional
        Images that training keeps in memory at once, where that is not a batch: without gradients
        eight times as many take no more.
    copies : dict, optional
        Of splits that are on the GPU already, by their ``id``: runs side by side share one.
    """

    def __init__(
        self,
        dataset: Dataset,
        augment: str,
        seed: int,
        device: torch.device,
        workers: int | None = None,
        statistics: tuple[Tensor, Tensor] | None = None,
        micro_batch: int | None = None,
        copies: dict[int, Split] | None = None,
    ) -> None:
        self.dataset = dataset
        self.augment = augment
        self.seed = seed
        self.device = device
        self.micro_batch = micro_batch
        self.workers = (WORKERS if dataset.train.mapped else 0) if workers is None else workers
        self.resident = device.type == "cuda" and not dataset.train.mapped
        self._copies = {} if copies is None else copies
        self._stream = torch.cuda.current_stream() if device.type == "cuda" else None
        mean, std = dataset.statistics if statistics is None else statistics
        self._shift = mean.to(device)[:, None, None]
        self._factor = (1 / std).to(device)[:, None, None]

    def training_batches(self, epoch: int, plan: Sequence[Tensor]) -> Iterator[Batch]:
        """A batch for each set of indices of the plan, in order."""
        if self.resident or not self.workers:
            yield from self._one_by_one(epoch, plan)
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

    def _one_by_one(self, epoch: int, plan: Sequence[Tensor]) -> Iterator[Batch]:
        sizes = [len(index) for index in plan]
        indices = torch.cat([torch.zeros(0, dtype=torch.int64), *plan])
        numbers = drawn(self.augment, self.seed, epoch, indices)
        if self.resident:
            indices, numbers = indices.to(self.device), numbers.to(self.device)
        for index, drawn_ in zip(indices.split(sizes), numbers.split(sizes), strict=True):
            yield self._batch(index, drawn_)

    def training_batch(self, epoch: int, index: Tensor) -> Batch:
        """The training images at ``index``, augmented as f(seed, epoch, index)."""
        # A thread that reads ahead queues its copies where the run will use them.
        with torch.cuda.stream(self._stream):
            return self._training_batch(epoch, index)

    def _training_batch(self, epoch: int, index: Tensor) -> Batch:
        numbers = drawn(self.augment, self.seed, epoch, index)
        if self.resident:
            index, numbers = index.to(self.device), numbers.to(self.device)
        return self._batch(index, numbers)

    def _batch(self, index: Tensor, numbers: Tensor) -> Batch:
        train = self._near(self.dataset.train)
        images, targets = train.images[index], train.targets[index]
        masks = targets if train.has_masks else None
        augment_as_drawn_(images, self.augment, numbers, masks)
        return Batch(
            self._normalized(images), self._there(targets), self._there(checksum(images, targets))
        )

    @property
    def evaluation_size(self) -> int:
        """Images of a batch in evaluation."""
        height, width = self.dataset.image_size
        few = max(1, EVALUATION_PIXELS // (height * width))
        if self.device.type != "cuda":
            return few
        many = max(1, EVALUATION_PIXELS_ON_GPU // (height * width))
        return max(few, min(many, 8 * self.micro_batch)) if self.micro_batch else many

    def evaluation_batches(self, split: Split) -> Iterator[tuple[Tensor, Tensor]]:
        """The images and targets of a split in order, not augmented."""
        source = self._near(split)
        size = self.evaluation_size
        for start in range(0, len(split), size):
            images = self._normalized(source.images[start : start + size])
            yield images, self._there(source.targets[start : start + size])

    def _near(self, split: Split) -> Split:
        """The split itself, or its copy on the GPU."""
        if not self.resident or split.mapped:
            return split
        if id(split) not in self._copies:
            images, targets = split.images.to(self.device), split.targets.to(self.device)
            self._copies[id(split)] = replace(split, images=images, targets=targets)
            if self._stream is not None:
                self._stream.synchronize()  # others read it on streams of their own
        return self._copies[id(split)]

    def _there(self, tensor: Tensor) -> Tensor:
        """On the device; from pinned memory, so that nothing waits for the copy."""
        if tensor.device.type == "cpu" and self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def _normalized(self, images: Tensor) -> Tensor:
        # Channels last at the end: broadcasting over channels is three times slower there.
        wide = self._there(images).to(torch.float32).sub_(self._shift).mul_(self._factor)
        return wide.contiguous(memory_format=torch.channels_last)
