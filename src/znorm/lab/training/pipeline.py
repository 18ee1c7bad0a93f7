"""From images in memory to the batches that a model sees."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from znorm.lab.datasets import Dataset, Part
from znorm.lab.training.sampler import augment_

__all__ = ["Pipeline"]


@dataclass(frozen=True)
class Batch:
    """What one step trains on.

    Parameters
    ----------
    images : Tensor of shape (N, C, H, W), float32
        Normalized, channels last.
    labels : Tensor of shape (N,), int64
    digest : bytes
        A hash of the pixels as augmented, and of the labels.
    """

    images: Tensor
    labels: Tensor
    digest: bytes


class Pipeline:
    """Makes batches: gather and augment as uint8, then normalize by the training set's statistics.

    Parameters
    ----------
    dataset : Dataset
    augment : "none" or "dihedral"
    seed : int
    device : torch.device
    """

    def __init__(self, dataset: Dataset, augment: str, seed: int, device: torch.device) -> None:
        self.dataset = dataset
        self.augment = augment
        self.seed = seed
        self.device = device
        mean, std = dataset.statistics()
        self._shift = mean.to(device)[:, None, None]
        self._factor = (1 / std).to(device)[:, None, None]

    def training_batch(self, epoch: int, index: Tensor) -> Batch:
        """The training images at ``index``, augmented as f(seed, epoch, index)."""
        part = self.dataset.train
        images, labels = part.images[index], part.labels[index]
        augment_(images, self.augment, self.seed, epoch, index)
        digest = hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).digest()
        return Batch(self._normalized(images), labels.to(self.device), digest)

    def evaluation_batches(self, part: Part, size: int = 256) -> list[tuple[Tensor, Tensor]]:
        """A part's images in order, not augmented."""
        starts = range(0, len(part), size)
        return [
            (
                self._normalized(part.images[start : start + size]),
                part.labels[start : start + size].to(self.device),
            )
            for start in starts
        ]

    def _normalized(self, images: Tensor) -> Tensor:
        # Channels last at the end: broadcasting over channels is three times slower there.
        wide = images.to(self.device, torch.float32, copy=True).sub_(self._shift).mul_(self._factor)
        return wide.contiguous(memory_format=torch.channels_last)
