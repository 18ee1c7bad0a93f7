"""Scores of a model on one part of a data set."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from znorm.lab.datasets import Part
from znorm.lab.losses import Loss
from znorm.lab.metrics import Cases, classification_scores, count
from znorm.lab.training.pipeline import Pipeline

__all__ = ["evaluate", "predict_cases"]

Autocast = Callable[[], AbstractContextManager[object]]


@torch.no_grad()
def evaluate(
    model: nn.Module, pipeline: Pipeline, part: Part, loss: Loss, autocast: Autocast
) -> dict[str, float]:
    """The loss and the scores that each epoch shows; nothing for an empty part.

    Returns
    -------
    dict of str to float
        ``loss`` and, for labels, all scores; for masks ``f1``, ``tversky`` and ``iou``, pooled.
    """
    if not len(part):
        return {}
    model.eval()
    # All stays on the device until the end: no batch waits for it.
    outputs, targets, losses, sizes = [], [], [], []
    for images, truth in pipeline.evaluation_batches(part):
        with autocast():
            logits = model(images)
        logits = logits.float()
        losses.append(loss(logits, truth))
        sizes.append(len(images))
        outputs.append(logits[:, 0] > 0 if part.has_masks else logits)
        targets.append(truth)
    found, truths = torch.cat(outputs).cpu(), torch.cat(targets).cpu()
    shares = torch.tensor(sizes, dtype=torch.float64) / len(part)
    mean_loss = float(torch.dot(torch.stack(losses).cpu().double(), shares))
    if not part.has_masks:
        return {**classification_scores(found, truths), "loss": mean_loss}
    counts = count(found, truths).pooled()
    return {
        "loss": mean_loss,
        "f1": float(counts.dice()),
        "tversky": float(counts.tversky()),
        "iou": float(counts.iou()),
    }


@torch.no_grad()
def predict_cases(
    model: nn.Module, pipeline: Pipeline, part: Part, autocast: Autocast
) -> Cases | None:
    """Counts and distances of each slice, distances in pixels; None for an empty part."""
    model.eval()
    joined: list[Cases] = []
    start = 0
    for images, truth in pipeline.evaluation_batches(part):
        with autocast():
            logits: Tensor = model(images)
        rows = slice(start, start + len(images))
        start += len(images)
        names = part.names[rows] or tuple(str(row) for row in range(start - len(images), start))
        joined.append(
            Cases.of(
                (logits[:, 0].float() > 0).cpu(),
                truth.cpu(),
                names,
                part.patients[rows] or None,
            )
        )
    return Cases.join(joined) if joined else None
