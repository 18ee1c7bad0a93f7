"""What a task trains on: images in memory, in three parts."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["Dataset", "Part"]


@dataclass(frozen=True)
class Part:
    """One part of a data set.

    Parameters
    ----------
    images : Tensor of shape (N, C, H, W), uint8
    labels : Tensor of shape (N,), int64
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def class_counts(self, classes: int) -> list[int]:
        """How many images each class has."""
        counts: list[int] = self.labels.bincount(minlength=classes).tolist()
        return counts

    def limited(self, limit: int | None) -> Part:
        """The first ``limit`` images, in turn from each class so that a small part has them all."""
        if limit is None or limit >= len(self):
            return self
        rank = torch.zeros(len(self), dtype=torch.int64)
        for label in self.labels.unique():
            members = self.labels == label
            rank[members] = torch.arange(int(members.sum()))
        chosen = torch.argsort(rank, stable=True)[:limit].sort().values
        return Part(self.images[chosen], self.labels[chosen])


@dataclass(frozen=True)
class Dataset:
    """Images for training, validation and test.

    Parameters
    ----------
    train, validation, test : Part
    classes : tuple of str
        The name of each label.
    notes : tuple of str
        What a reader of its results must know, shown on every page.
    """

    train: Part
    validation: Part
    test: Part
    classes: tuple[str, ...]
    notes: tuple[str, ...] = field(default=())

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel over the training images, from 0 to 255."""
        images = self.train.images.to(torch.float64)
        std, mean = torch.std_mean(images, dim=(0, 2, 3), correction=0)
        return mean.to(torch.float32), std.clamp(min=1.0).to(torch.float32)

    def limited(self, limit: int | None) -> Dataset:
        """At most ``limit`` images in each part, and a note that says so."""
        if limit is None or limit >= max(map(len, (self.train, self.validation, self.test))):
            return self
        return Dataset(
            self.train.limited(limit),
            self.validation.limited(limit),
            self.test.limited(limit),
            self.classes,
            (*self.notes, f"Limited to {limit} images of each part: not the whole data set."),
        )
