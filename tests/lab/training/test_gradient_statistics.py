"""Receipts of a run's epochs, against gradients that a loop written out here sees."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lab.kit import PLAIN, Watch
from znorm.lab import models, tasks
from znorm.lab.errors import Interrupted
from znorm.lab.spec import RunSpec, resolve
from znorm.lab.training.loop import train
from znorm.lab.training.sampler import batches


def spec(method: str, **choices: Any) -> RunSpec:
    small = {"model": "resnet20", "epochs": 2, "batch_size": 16, "data.limit": 56}
    small |= {"data.augment": "none", "receipt": True}
    return resolve({**PLAIN, **small, **choices, "method": method})


def seen(of: RunSpec, saved: bytes | None = None, watch: Watch | None = None) -> list[Any]:
    watch = watch or Watch()
    checkpoints: list[bytes] = []
    try:
        train(
            of,
            tasks.load(of.task, of.data),
            watch,
            [] if saved is None else [saved],
            checkpoints.append,
        )
    except Interrupted:
        again = Watch()
        train(of, tasks.load(of.task, of.data), again, checkpoints[-1:], checkpoints.append)
        watch = again
    return [entry["receipt"] for entry in watch.entries]


def test_norms_of_the_plain_optimizer_are_those_of_a_plain_loop() -> None:
    of = spec("baseline")
    dataset = tasks.load(of.task, of.data)
    torch.manual_seed(of.seed)
    model = models.build("resnet20", channels=3, classes=2, image_size=32)
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    mean, std = (values[:, None, None] for values in dataset.statistics)
    for epoch, receipt in enumerate(seen(of)):
        norms: dict[str, list[float]] = {}
        for index in batches(of.seed, epoch, len(dataset.train), of.batch_size):
            x = (dataset.train.images[index].float() - mean) * (1 / std)
            x = x.contiguous(memory_format=torch.channels_last)
            model.zero_grad()
            F.cross_entropy(model(x), dataset.train.targets[index]).backward()
            for name, parameter in model.named_parameters():
                assert parameter.grad is not None
                norms.setdefault(name, []).append(float(parameter.grad.double().norm()))
            optimizer.step()
        assert len(receipt) == 20  # no biases, no normalizations
        for name, values in receipt.items():
            assert values["steps"] == 4
            assert values["norm_before"] == pytest.approx(np.mean(norms[name]), rel=1e-6)
            assert values["norm_after"] == pytest.approx(values["norm_before"], rel=1e-12)


def test_znorm_gives_each_layer_the_norm_of_its_size() -> None:
    of = spec("znorm")
    sizes = {
        name: parameter.numel()
        for name, parameter in models.build(
            "resnet20", channels=3, classes=2, image_size=32
        ).named_parameters()
    }
    for receipt in seen(of):
        assert len(receipt) == 20  # the weights of 19 convolutions and of the last layer
        for name, values in receipt.items():
            assert values["norm_after"] == pytest.approx(sizes[name] ** 0.5, rel=1e-6)


@pytest.mark.parametrize("stop_after", [2, 4, 6])
def test_a_stop_changes_no_receipt(stop_after: int) -> None:
    of = spec("znorm")
    whole, resumed = seen(of), seen(of, watch=Watch(stop_after))
    assert len(whole) == len(resumed) == 2
    for one, other in zip(whole, resumed, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name] == pytest.approx(other[name], rel=1e-12)


def test_what_is_kept_changes_no_hash_of_other_runs() -> None:
    plain, kept = spec("znorm", receipt=None), spec("znorm")
    assert plain.hash == spec("znorm", receipt=False).hash != kept.hash
    assert "receipt" not in plain.canonical()
