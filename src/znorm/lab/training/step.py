"""A step of a specification: what the loop takes, a plan measures and memory is counted of."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from znorm.lab.losses import LOSSES, Loss
from znorm.lab.own_code import is_own, loss_at
from znorm.lab.spec import RunSpec

__all__ = ["backward", "evaluation_loss", "forward", "forward_loss", "take_step"]


def _precision(spec: RunSpec, images: Tensor) -> AbstractContextManager[object]:
    """The arithmetic of the specification, on the device of the images."""
    if spec.precision == "float32":
        return nullcontext()
    return torch.autocast(images.device.type, torch.bfloat16)


def _loss(spec: RunSpec, device: torch.device) -> Loss:
    """The specification's loss: of those by name, or of the user's own."""
    return loss_at(spec.loss, str(device)) if is_own(spec.loss) else LOSSES[spec.loss]


def forward(spec: RunSpec, model: nn.Module, images: Tensor) -> Tensor:
    """The net's outputs in float32, as evaluation and prediction take them."""
    with _precision(spec, images):
        outputs: Tensor = model(images)
    return outputs.float()


def forward_loss(spec: RunSpec, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """The training loss of these images, all in memory at once."""
    with _precision(spec, images):
        return _loss(spec, images.device)(model(images), targets)


def evaluation_loss(
    spec: RunSpec, model: nn.Module, images: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """The outputs of :func:`forward` and their loss, for a net in evaluation mode."""
    outputs = forward(spec, model, images)
    return outputs, _loss(spec, images.device)(outputs, targets)


def backward(spec: RunSpec, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """The batch's loss, its gradient added up over the pieces that are in memory at once.

    Each piece counts by its share of the images. Batch normalization then sees a piece at a
    time, and a loss that is a ratio of sums over the batch becomes a mean of such ratios.
    """
    size = spec.micro_batch or len(images)
    # Never a piece of one image: batch normalization cannot train on it.
    pieces = max(1, min(math.ceil(len(images) / size), len(images) // 2))
    total: Tensor | None = None
    for piece, truth in zip(images.tensor_split(pieces), targets.tensor_split(pieces), strict=True):
        loss = forward_loss(spec, model, piece, truth)
        if pieces > 1:
            loss = loss * (len(piece) / len(images))
        loss.backward()
        total = loss.detach() if total is None else total + loss.detach()
    assert total is not None
    return total


def take_step(
    spec: RunSpec,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    targets: Tensor,
) -> Tensor:
    """Forward, backward and update; the batch's loss, which is not waited for."""
    optimizer.zero_grad()
    loss = backward(spec, model, images, targets)
    optimizer.step()
    return loss
