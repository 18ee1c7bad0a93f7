"""Scores of a model on one split of a data set."""

from __future__ import annotations

import torch
from torch import nn

from znorm.lab.datasets import Split
from znorm.lab.metrics import Cases, classification_scores, count
from znorm.lab.metrics.scores import MASK_SCORES
from znorm.lab.spec import RunSpec
from znorm.lab.training.pipeline import Pipeline
from znorm.lab.training.step import evaluation_loss, forward

__all__ = ["evaluate", "predict_cases"]


@torch.no_grad()
def evaluate(spec: RunSpec, model: nn.Module, pipeline: Pipeline, split: Split) -> dict[str, float]:
    """The loss and the scores that each epoch shows; nothing for an empty split.

    Returns
    -------
    dict of str to float
        ``loss`` and all scores of classes, or those of masks that follow from counts, pooled.
    """
    if not len(split):
        return {}
    model.eval()
    # All stays on the device until the end: no batch waits for it.
    outputs, targets, losses, sizes = [], [], [], []
    for images, truth in pipeline.evaluation_batches(split):
        logits, loss = evaluation_loss(spec, model, images, truth)
        losses.append(loss)
        sizes.append(len(images))
        outputs.append(logits[:, 0] > 0 if split.has_masks else logits)
        targets.append(truth)
    predicted, truths = torch.cat(outputs).cpu(), torch.cat(targets).cpu()
    shares = torch.tensor(sizes, dtype=torch.float64) / len(split)
    mean_loss = float(torch.dot(torch.stack(losses).cpu().double(), shares))
    if not split.has_masks:
        return {**classification_scores(predicted, truths), "loss": mean_loss}
    counts = count(predicted, truths).pooled()
    scores = {name: float(score.compute(counts)) for name, score in MASK_SCORES.items()}
    return {"loss": mean_loss, **scores}


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
