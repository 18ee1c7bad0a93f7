"""The net and the optimizer of a specification, and whether they take a data set's images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from znorm.lab import models, tasks, trust
from znorm.lab.datasets import Dataset
from znorm.lab.errors import ConfigurationError
from znorm.lab.methods import make_transform
from znorm.lab.models.start import read_start, start_from
from znorm.lab.optimizers import make_optimizer
from znorm.lab.own_code import is_own, try_loss, try_metrics
from znorm.lab.spec import RunSpec

__all__ = [
    "build_net",
    "check_images",
    "first_images",
    "load_once",
    "on_device",
    "set_up",
    "start_of",
    "try_model",
    "try_own_code",
]


def build_net(
    spec: RunSpec, *, channels: int, classes: int, image_size: tuple[int, int]
) -> nn.Module:
    """The specification's net for such images, with fresh weights, on the CPU.

    Raises
    ------
    ConfigurationError
        If it names code that is not trusted (see :mod:`znorm.lab.trust`), or does not take them.
    """
    trust.check(spec)
    return models.build(
        spec.model,
        channels=channels,
        classes=classes,
        image_size=image_size,
        **spec.model_options,
    )


def on_device(model: nn.Module, device: str | torch.device) -> nn.Module:
    """The net where it is to compute, channels last, as its images are."""
    moved: nn.Module = model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved


def set_up(spec: RunSpec, dataset: Dataset) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The net and the optimizer that a run begins with, on the specification's device.

    Raises
    ------
    ConfigurationError
        As :func:`build_net`.
    """
    model = _net_for(spec, dataset)
    if spec.start_digest is not None:
        start_from(model, start_of(spec), dataset.outputs)
    model = on_device(model, spec.device)
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


def start_of(spec: RunSpec) -> dict[str, Tensor]:
    """The weights that a specification's runs start from.

    Raises
    ------
    ConfigurationError, DataError
        If the file is not named, or not there as it was.
    """
    if spec.start is None or spec.start_digest is None:
        raise ConfigurationError("start: the specification has the hash of weights, and no file")
    return read_start(spec.start, spec.start_digest)


def _net_for(spec: RunSpec, dataset: Dataset) -> nn.Module:
    return build_net(
        spec,
        channels=dataset.channels,
        classes=dataset.outputs,
        image_size=dataset.image_size,
    )


def first_images(spec: RunSpec, dataset: Dataset, size: int) -> tuple[Tensor, Tensor]:
    """So many training images and their targets as a step takes them, to try one.

    Not normalized: the cost of a step does not depend on it. From the start again where there are
    fewer.
    """
    chosen = dataset.train.take(torch.arange(size) % len(dataset.train))
    images = chosen.images.to(spec.device).float().contiguous(memory_format=torch.channels_last)
    return images, chosen.targets.to(spec.device)


def load_once(spec: RunSpec, loaded: dict[str, Dataset]) -> Dataset:
    """The specification's images; kept in ``loaded``, and read where they are not there yet."""
    key = spec.data_key
    if key not in loaded:
        loaded[key] = tasks.load(spec.task, spec.data)
    return loaded[key]


def check_images(spec: RunSpec, dataset: Dataset) -> None:
    """Refuse images that are too few to train on, or that the model cannot take.

    Raises
    ------
    ConfigurationError
        Or for code that is not trusted.
    """
    trust.check(spec)
    if len(dataset.train) < 2 or not len(dataset.test):
        raise ConfigurationError(
            f"task {spec.task}: {len(dataset.train)} training and {len(dataset.test)} test "
            "images are too few; lower data.validation or raise data.limit"
        )
    if (spec.patience or spec.best_epoch) and not len(dataset.validation):
        raise ConfigurationError(
            "patience, best_epoch: which epoch is best is told by validation images, and there are "
            "none; raise data.validation"
        )
    models.check(
        spec.model,
        channels=dataset.channels,
        classes=dataset.outputs,
        image_size=dataset.image_size,
        **spec.model_options,
    )


def try_model(spec: RunSpec, dataset: Dataset) -> None:
    """Build a model, and see that its outputs fit the task, and weights that it starts from it.

    Raises
    ------
    ConfigurationError, DataError
    """
    model = _net_for(spec, dataset).eval()
    if spec.start_digest is not None:
        start_from(model, start_of(spec), dataset.outputs)
    with torch.no_grad():
        shape = tuple(model(torch.zeros(2, dataset.channels, *dataset.image_size)).shape)
    expected: tuple[int, ...] = (2, dataset.outputs)
    if dataset.train.has_masks:
        expected += dataset.image_size
    if shape != expected:
        raise ConfigurationError(
            f"model {spec.model}: task {spec.task} needs outputs of shape {expected} for two "
            f"images, found {shape}"
        )


def try_own_code(spec: RunSpec, dataset: Dataset) -> None:
    """See that a loss and metrics of the user's own take what a net gives for these images.

    They get outputs drawn at random, beside targets of the test part: as many as there are, up to a
    batch, spread over it so that every class is among them.

    Raises
    ------
    ConfigurationError
    """
    trust.check(spec)
    if not is_own(spec.loss) and not spec.metrics:
        return
    targets = dataset.test.limited(spec.batch_size).targets
    shape = (len(targets), dataset.outputs, *targets.shape[1:])
    outputs = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    if is_own(spec.loss):
        try_loss(spec.loss, outputs.to(spec.device), targets.to(spec.device))
    if spec.metrics:
        try_metrics(spec.metrics, outputs, targets)
