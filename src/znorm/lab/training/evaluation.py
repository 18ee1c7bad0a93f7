"""Scores of a model on one split of a data set."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from znorm.lab.datasets import Split
from znorm.lab.metrics import Cases, classification_scores, count
from znorm.lab.metrics.scores import MASK_SCORES
from znorm.lab.own_code import own_scores, probabilities
from znorm.lab.spec import RunSpec
from znorm.lab.training.graph import CapturedWork
from znorm.lab.training.pipeline import Pipeline
from znorm.lab.training.step import evaluation_loss, forward

__all__ = ["Evaluator", "predict_cases"]

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
        outputs, truths, losses, sizes, whole = [], [], [], [], []
        for images, truth in self._pipeline.evaluation_batches(split):
            output, loss = self._evaluate(images, truth)
            losses.append(loss)
            sizes.append(len(images))
            outputs.append(output[:, 0] > 0 if split.has_masks else output)
            truths.append(truth)
            if self._spec.metrics:
                whole.append(probabilities(output))

        def read() -> Scores:
            if not sizes:
                return {}
            predicted, targets = torch.cat(outputs).cpu(), torch.cat(truths).cpu()
            shares = torch.tensor(sizes, dtype=torch.float64) / len(split)
            mean_loss = float(torch.dot(torch.stack(losses).cpu().double(), shares))
            own: Scores = {}
            if self._spec.metrics:
                # What is nan is left out, as of the scores by name.
                own = own_scores(self._spec.metrics, torch.cat(whole).cpu(), targets)
            if not split.has_masks:
                return {**classification_scores(predicted, targets), **own, "loss": mean_loss}
            counts = count(predicted, targets).pooled()
            scores = {name: float(score.compute(counts)) for name, score in MASK_SCORES.items()}
            return {"loss": mean_loss, **scores, **own}

        return read

    def _evaluate(self, images: Tensor, truth: Tensor) -> tuple[Tensor, ...]:
        if self._captured is None:
            return self._output_and_loss(images, truth)
        return self._captured.take(self._output_and_loss, images, truth)

    def _output_and_loss(self, images: Tensor, truth: Tensor) -> tuple[Tensor, ...]:
        return evaluation_loss(self._spec, self._model, images, truth)


@torch.no_grad()
def predict_cases(
    spec: RunSpec, model: nn.Module, pipeline: Pipeline, split: Split
) -> Cases | None:
    """Counts and distances of each slice, distances in pixels; None for an empty split."""
    model.eval()
    joined: list[Cases] = []
    start = 0
    for images, truth in pipeline.evaluation_batches(split):
        logits = forward(spec, model, images)
        rows = slice(start, start + len(images))
        start += len(images)
        names = split.names[rows] or tuple(str(row) for row in range(start - len(images), start))
        joined.append(
            Cases.of(
                (logits[:, 0] > 0).cpu(),
                truth.cpu(),
                names,
                split.patients[rows] or None,
            )
        )
    return Cases.join(joined) if joined else None
