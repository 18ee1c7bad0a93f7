"""The net and the optimizer that a run begins with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from znorm.lab import models, trust
from znorm.lab.datasets import Dataset
from znorm.lab.methods import make_transform
from znorm.lab.optimizers import make_optimizer
from znorm.lab.spec import RunSpec

__all__ = ["begin", "first_images"]


def begin(spec: RunSpec, dataset: Dataset) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Both as the specification says, on its device, channels last.

    Raises
    ------
    ConfigurationError
        If it names code that is not trusted; see :mod:`znorm.lab.trust`.
    """
    trust.check(spec)
    model = models.build(
        spec.model,
        channels=dataset.channels,
        classes=dataset.outputs,
        image_size=dataset.image_size,
        **spec.model_options,
    ).to(device=spec.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = make_optimizer(
        spec.optimizer,
        spec.optimizer_options,
        spec.weight_decay,
        # A receipt is of a transform that is attached: the loop does that, epoch by epoch.
        None if spec.receipt else make_transform(spec.transform),
        model,
        spec.learning_rate,
        capturable=bool(spec.cuda_graph),
    )
    return model, optimizer


def first_images(spec: RunSpec, dataset: Dataset, size: int) -> tuple[Tensor, Tensor]:
    """So many training images and their targets as a step takes them, to try one.

    Not normalized: what a step costs does not depend on it. From the start again where there are
    fewer.
    """
    some = dataset.train.take(torch.arange(size) % len(dataset.train))
    images = some.images.to(spec.device).float().contiguous(memory_format=torch.channels_last)
    return images, some.targets.to(spec.device)
