"""Scores of a model on one split of a data set."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from znorm.lab.datasets import Split
from znorm.lab.datasets.tiles import Tiles
from znorm.lab.metrics import Cases, ClassCases, classification_scores, masks_of
from znorm.lab.metrics.scores import MASK_SCORES
from znorm.lab.metrics.segmentation import Counts, pooled_pixels
from znorm.lab.own_code import own_scores, probabilities
from znorm.lab.spec import RunSpec
from znorm.lab.training.graph import CapturedWork
from znorm.lab.training.pipeline import Pipeline
from znorm.lab.training.step import evaluation_loss, forward
from znorm.lab.training.threshold import best_threshold

__all__ = ["Evaluator", "chosen_threshold", "predict_cases", "predict_classes"]

Scores = dict[str, float]


class Evaluator:
    """Evaluates a net as it is trained, epoch by epoch.

    Parameters
    ----------
    spec : RunSpec
    model : torch.nn.Module
    pipeline : Pipeline
    """

    def __init__(self, spec: RunSpec, model: nn.Module, pipeline: Pipeline) -> None:
        self._spec, self._model, self._pipeline = spec, model, pipeline
        size = pipeline.evaluation_size
        self._captured = CapturedWork(size) if spec.cuda_graph else None

    @torch.no_grad()
    def queue(self, split: Split) -> Callable[[], Scores]:
        """Queue the evaluation of a split on the device.

        Returns
        -------
        callable () -> dict of str to float
            Waits for it, and gives ``loss`` and all scores of classes, or those of masks that
            follow from counts, pooled; nothing for an empty split.
        """
        self._model.eval()
        # All stays on the device until the end: no batch waits for it.
        outputs: list[Tensor] = []
        truths: list[Tensor] = []
        pixels: list[Tensor] = []
        losses, sizes, whole = [], [], []
        for images, truth in self._pipeline.evaluation_batches(split):
            output, loss = self._evaluate(images, truth)
            losses.append(loss)
            sizes.append(len(images))
            if split.has_masks:
                pixels.append(self._pixels(masks_of(output), truth))
            else:
                outputs.append(output)
            if self._spec.metrics:
                whole.append(probabilities(output))
            if self._spec.metrics or not split.has_masks:
                truths.append(truth)

        def read() -> Scores:
            if not sizes:
                return {}
            shares = torch.tensor(sizes, dtype=torch.float64) / len(split)
            mean_loss = float(torch.dot(torch.stack(losses).cpu().double(), shares))
            own: Scores = {}
            if self._spec.metrics:
                # What is nan is left out, as of the scores by name.
                own = own_scores(self._spec.metrics, torch.cat(whole).cpu(), _on_host(truths))
            if split.has_masks:
                return {"loss": mean_loss, **_mask_scores(torch.stack(pixels).sum(0).cpu()), **own}
            scores = classification_scores(torch.cat(outputs).cpu(), _on_host(truths))
            return {**scores, **own, "loss": mean_loss}

        return read

    def _pixels(self, predicted: Tensor, true: Tensor) -> Tensor:
        """Counts of pixels on the device, a row a label."""
        labels = range(1, len(self._pipeline.dataset.classes))
        if len(labels) < 2:
            return pooled_pixels(predicted, true.bool())[None]
        return torch.stack([pooled_pixels(predicted == one, true == one) for one in labels])

    def _evaluate(self, images: Tensor, truth: Tensor) -> tuple[Tensor, ...]:
        if self._captured is None:
            return self._output_and_loss(images, truth)
        return self._captured.take(self._output_and_loss, images, truth)

    def _output_and_loss(self, images: Tensor, truth: Tensor) -> tuple[Tensor, ...]:
        return evaluation_loss(self._spec, self._model, images, truth)


def _on_host(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts).cpu()


def _mask_scores(pixels: Tensor) -> Scores:
    """The scores of all pixels pooled, from counts by label; the mean over labels."""
    counted = [Counts(*row[:, None]) for row in pixels]
    # As `Cases.by_label`: what is nowhere has no score.
    of_labels = [one for one in counted if int(one.tp + one.fp + one.fn)] or counted
    return {
        name: math.fsum(float(score.compute(one)) for one in of_labels) / len(of_labels)
        for name, score in MASK_SCORES.items()
    }


def _logits(spec: RunSpec, model: nn.Module, pipeline: Pipeline, split: Split) -> Iterator[Tensor]:
    """The outputs of a net in evaluation mode for a split, batch by batch."""
    model.eval()
    for images, _ in pipeline.evaluation_batches(split):
        yield forward(spec, model, images)


@torch.no_grad()
def chosen_threshold(
    spec: RunSpec, model: nn.Module, pipeline: Pipeline, split: Split
) -> float | None:
    """The probability with the best headline score on a split; None of several classes."""
    if len(pipeline.dataset.classes) != 2 or not len(split):
        return None
    outputs = _logits(spec, model, pipeline, split)
    truths = (truth for _, truth in pipeline.evaluation_batches(split))
    if split.has_masks:
        return best_threshold(outputs, truths, "dice")
    return best_threshold((one[:, 1] - one[:, 0] for one in outputs), truths, "accuracy")


@torch.no_grad()
def predict_classes(
    spec: RunSpec, model: nn.Module, pipeline: Pipeline, split: Split
) -> ClassCases | None:
    """The classes of each case of a split; None for an empty one."""
    if not len(split):
        return None
    outputs = [output.cpu() for output in _logits(spec, model, pipeline, split)]
    classes, patients = pipeline.dataset.classes, split.case_patients
    return ClassCases.of(torch.cat(outputs), split.targets, classes, split.case_names, patients)


@torch.no_grad()
def predict_cases(
    spec: RunSpec, model: nn.Module, pipeline: Pipeline, split: Split
) -> Cases | None:
    """Counts and distances of each case; None for an empty split.

    Of pictures that were cut into tiles, of the whole ones.
    """
    marked = pipeline.dataset.classes[1:]
    labels = marked if len(marked) > 1 else None
    logits = _logits(spec, model, pipeline, split)
    if split.tiles is not None:
        return _cases_of_tiles(split, split.tiles, logits, labels)
    joined: list[Cases] = []
    start = 0
    for output in logits:
        rows = slice(start, start + len(output))
        start = rows.stop
        joined.append(
            Cases.of(
                masks_of(output).cpu(),
                split.targets[rows],
                split.names[rows] or tuple(str(row) for row in range(rows.start, start)),
                split.patients[rows] or None,
                None if split.spacing is None else split.spacing[rows],
                labels,
            )
        )
    return Cases.join(joined) if joined else None


def _cases_of_tiles(
    split: Split, tiles: Tiles, logits: Iterator[Tensor], labels: Sequence[str] | None
) -> Cases | None:
    joined = []
    predicted = tiles.joined(output.cpu() for output in logits)
    true = tiles.joined(block.targets for block in split.blocks())
    names, patients, spacing = split.case_names, split.case_patients, split.case_spacing
    for row, ((_, output), (_, target)) in enumerate(zip(predicted, true, strict=True)):
        one = slice(row, row + 1)
        joined.append(
            Cases.of(
                masks_of(output[None]),
                target[None],
                names[one],
                patients[one] or None,
                None if spacing is None else spacing[one],
                labels,
            )
        )
    return Cases.join(joined) if joined else None
