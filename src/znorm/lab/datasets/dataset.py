"""The images of a task in three splits, each with its labels or masks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from znorm.lab.datasets.tiles import Tiles

__all__ = ["RESERVED", "Dataset", "Split"]

# Columns beside those of the classes in a table of predictions: no class can have these names.
RESERVED = ("name", "truth", "predicted")

# Images looked at together where a whole split is read: a few MB, whatever its size.
_BLOCK = 256


@dataclass(frozen=True)
class Split:
    """One split of a data set: its training, validation or test images.

    Tensors may lie in memory or be mapped from a file: indexing reads what is asked for.

    Parameters
    ----------
    images : Tensor of shape (N, C, H, W), uint8
    targets : Tensor
        Labels (N,) int64, or masks (N, H, W) uint8: the number of a class, 0 for none.
    names : tuple of str
        Of each image; empty where they have none.
    patients : tuple of str
        Of each image; empty where they are not known.
    mapped : bool
        Whether the images are mapped from a file that does not fit in memory.
    spacing : Tensor of shape (N, 2), float64, or None
        Millimetres from row to row and from column to column of each image; None where it is not
        known of all of them.
    tiles : Tiles or None
        Where the images are tiles of pictures, the places that they were cut from.
    """

    images: Tensor
    targets: Tensor
    names: tuple[str, ...] = ()
    patients: tuple[str, ...] = ()
    mapped: bool = False
    spacing: Tensor | None = None
    tiles: Tiles | None = None

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def has_masks(self) -> bool:
        return self.targets.dim() == 3

    @cached_property
    def labels(self) -> Tensor:
        """The label of each image; of a mask, whether it marks anything."""
        if not self.has_masks:
            return self.targets
        return torch.cat([torch.zeros(0, dtype=torch.int64), *map(_any, self.blocks())])

    def blocks(self) -> Iterator[Split]:
        """The split in pieces that are small in memory, in order."""
        for start in range(0, len(self), _BLOCK):
            yield self.take(torch.arange(start, min(start + _BLOCK, len(self))))

    def take(self, index: Tensor) -> Split:
        """The images at ``index``, read into memory."""
        chosen = index.tolist()
        return Split(
            self.images[index],
            self.targets[index],
            tuple(self.names[i] for i in chosen) if self.names else (),
            tuple(self.patients[i] for i in chosen) if self.patients else (),
            spacing=None if self.spacing is None else self.spacing[index],
            tiles=None if self.tiles is None else self.tiles.take(index),
        )

    def of_class(self, number: int, classes: int) -> Tensor:
        """True for the images of a class; of masks, for those that mark nothing, and that do.

        Of masks of several classes an image is of each that its mask has: bool of shape (N,).
        """
        if not self.has_masks or classes == 2 or number == 0:
            return self.labels == number
        marks = [(block.targets == number).flatten(1).any(1) for block in self.blocks()]
        return torch.cat([torch.zeros(0, dtype=torch.bool), *marks])

    @property
    def case_names(self) -> tuple[str, ...]:
        """The name of each case: an image, or the picture that tiles were cut from.

        Images without names are numbered.
        """
        if self.tiles is not None:
            return self.tiles.case_names
        return self.names or tuple(f"test-{row}" for row in range(len(self)))

    @property
    def case_patients(self) -> tuple[str, ...]:
        """The patient of each case; none where they are not known."""
        return tuple(self.patients[row] for row in self._first_rows()) if self.patients else ()

    @property
    def case_spacing(self) -> Tensor | None:
        """The spacing of each case, as that of each image."""
        return None if self.spacing is None else self.spacing[self._first_rows()]

    def _first_rows(self) -> list[int]:
        """The first image of each case."""
        if self.tiles is None:
            return list(range(len(self)))
        numbers = self.tiles.picture.tolist()
        return [row for row, one in enumerate(numbers) if row == 0 or numbers[row - 1] != one]

    def cases(self, values: Tensor) -> list[Tensor]:
        """For each case what there is for it, from what there is for each image."""
        if self.tiles is None:
            return list(values)
        return [one for _, one in self.tiles.joined([values])]

    def take_cases(self, names: Sequence[str]) -> Split:
        """The images of the cases of these names; tiles in the order of the split."""
        if self.tiles is not None:
            return self.take(self.tiles.rows_of(names))
        places = {name: place for place, name in enumerate(self.case_names)}
        return self.take(torch.tensor([places[name] for name in names], dtype=torch.int64))

    def class_counts(self, classes: int) -> list[int]:
        """The number of images of each class, as `of_class` counts them; of tiles, of pictures."""
        if self.tiles is None:
            return [int(self.of_class(number, classes).sum()) for number in range(classes)]
        marked = [
            len(self.tiles.picture[self.of_class(number, classes)].unique())
            for number in range(1, classes)
        ]
        pictures = len(self.tiles.picture.unique())
        any_ = len(self.tiles.picture[self.labels > 0].unique())
        return [pictures - any_, *marked]

    def limited(self, limit: int | None) -> Split:
        """At most ``limit`` images: as many of each class, spread evenly over the split.

        So a small split has every class, and slices of many patients where neighbours are alike.
        Of pictures that are cut into tiles, so many pictures with all of their tiles.
        """
        labels, pictures = self.labels, None
        if self.tiles is not None:
            pictures, places = self.tiles.picture.unique(return_inverse=True)
            labels = torch.zeros_like(pictures).scatter_reduce(0, places, labels, "amax")
        if limit is None or limit >= len(labels):
            return self
        classes = [(labels == label).nonzero().flatten() for label in labels.unique()]
        left, chosen = limit, []
        # From the rarest class on, so that what one does not have the others make up for.
        for place, members in enumerate(sorted(classes, key=len)):
            number = min(len(members), left // (len(classes) - place))
            left -= number
            chosen.append(members[torch.arange(number) * len(members) // max(number, 1)])
        kept = torch.cat(chosen).sort().values
        if pictures is not None and self.tiles is not None:
            kept = torch.isin(self.tiles.picture, pictures[kept]).nonzero().flatten()
        return self.take(kept)


def _any(block: Split) -> Tensor:
    return block.targets.flatten(1).any(1).to(torch.int64)


@dataclass(frozen=True)
class Dataset:
    """Images for training, validation and test.

    Parameters
    ----------
    train, validation, test : Split
    classes : tuple of str
        The name of each label; of masks, the name of what is not marked and of each thing that is.
    notes : tuple of str
        What a reader of its results must know, shown on every page.
    """

    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def channels(self) -> int:
        """The channels of an image."""
        return self.train.images.shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width."""
        return self.train.images.shape[2], self.train.images.shape[3]

    @property
    def outputs(self) -> int:
        """Channels of a net's output: one a class; one for a mask of yes and no."""
        return 1 if self.train.has_masks and len(self.classes) == 2 else len(self.classes)

    @cached_property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel over the training images, from 0 to 255.

        From counts of the 256 values: exact, and one pass over images of any number.
        """
        counts = torch.zeros(self.channels, 256, dtype=torch.float64)
        for block in self.train.blocks():
            for channel in range(self.channels):
                values = block.images[:, channel].flatten().to(torch.int64)
                counts[channel] += values.bincount(minlength=256)
        values = torch.arange(256, dtype=torch.float64)
        total = counts.sum(1).clamp(min=1)
        mean = (counts @ values) / total
        variance = ((values - mean[:, None]).square() * counts).sum(1) / total
        return mean.to(torch.float32), variance.sqrt().clamp(min=1.0).to(torch.float32)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over every image and target of the three splits, in their order.

        One more pass over the images: 1 to 2 GB a second.
        """
        digest = hashlib.sha256()
        for split in (self.train, self.validation, self.test):
            digest.update(f"{tuple(split.images.shape)} {tuple(split.targets.shape)}".encode())
            for block in split.blocks():
                digest.update(block.images.numpy().tobytes())
                digest.update(block.targets.numpy().tobytes())
        return digest.hexdigest()

    def limited(self, limit: int | None) -> Dataset:
        """At most ``limit`` images in each split, and a note that says so."""
        parts = (self.train, self.validation, self.test)
        if limit is None or all(part.limited(limit) is part for part in parts):
            return self
        return replace(
            self,
            train=self.train.limited(limit),
            validation=self.validation.limited(limit),
            test=self.test.limited(limit),
            notes=(
                *self.notes,
                f"Limited to {limit} images of each part, as many of each class as there are: "
                "neither the whole data set nor its mix of classes.",
            ),
        )
