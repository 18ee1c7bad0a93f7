"""Predicted masks one by one, each in its picture's own size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from znorm.lab.datasets.own.masks import numbered
from znorm.lab.datasets.own.reading import facts_of, read_slice
from znorm.lab.metrics import Cases, masks_of
from znorm.lab.prediction.pictures import Pictures
from znorm.lab.training.threshold import logit

__all__ = ["Predicted", "PredictedMask"]

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class PredictedMask:
    """One picture and its mask.

    Parameters
    ----------
    image : array of shape (H, W, 3), uint8
    mask : Tensor of shape (H, W)
        What is marked, by number.
    truth : Tensor of shape (H, W) or None
    """

    image: Pixels
    mask: Tensor
    truth: Tensor | None


class Predicted:
    """The masks of pictures, from what a net gave for the images that were made of them.

    Parameters
    ----------
    pictures : Pictures
    outputs : Tensor of shape (N, K, h, w)
        Logits of each image of the split.
    threshold : float
        The probability above which a pixel is marked, where one thing is.
    labels : sequence of str
        The names of what is marked, where there are several.
    """

    def __init__(
        self, pictures: Pictures, outputs: Tensor, threshold: float, labels: Sequence[str]
    ) -> None:
        self._pictures, self._threshold = pictures, logit(threshold)
        self._labels = labels or None
        split = pictures.split
        self._outputs = split.cases(outputs)
        self._patients = split.case_patients
        self._spacing = split.case_spacing
        if not pictures.sources:
            self._images, self._targets = split.cases(split.images), split.cases(split.targets)

    def __len__(self) -> int:
        return len(self._pictures.names)

    def __getitem__(self, row: int) -> PredictedMask:
        truth: Tensor | None = None
        output = self._outputs[row]
        if not self._pictures.sources:
            image = self._images[row].permute(1, 2, 0).numpy()
            if self._pictures.truth:
                truth = self._targets[row]
        else:
            source, rule = self._pictures.sources[row], self._pictures.rule
            assert rule is not None, "pictures from files are read by a rule"
            image = rule.shown(read_slice(source.path, source.slice))
            size = image.shape[:2]
            if source.mask is not None:
                numbers = numbered(source.mask, source.slice, rule.labels, size)
                truth = torch.from_numpy(numbers)
            if output.shape[1:] != size:
                output = functional.interpolate(output[None], size, mode="bilinear")[0]
        mask = masks_of(output[None], self._threshold)[0]
        colours = np.ascontiguousarray(np.broadcast_to(image[..., :3], (*image.shape[:2], 3)))
        return PredictedMask(colours, mask, truth)

    def cases(self, row: int) -> Cases:
        """Counts and distances of a picture whose truth is known."""
        one = self[row]
        assert one.truth is not None
        mask, truth = one.mask[None], one.truth[None]
        if self._labels is None:
            truth = truth > 0
        patient = [self._patients[row]] if self._patients else None
        spacing = None if self._spacing is None else self._spacing[row : row + 1]
        if self._pictures.sources:
            of_file = facts_of(self._pictures.sources[row].path).spacing
            spacing = None if of_file is None else torch.tensor([of_file], dtype=torch.float64)
        name = self._pictures.names[row]
        return Cases.of(mask, truth, [name], patient, spacing, self._labels)
