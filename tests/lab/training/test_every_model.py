"""On every model the loop ends with the bits of one that is written out here, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import znorm
from lab.kit import Watch
from znorm.lab import models
from znorm.lab.datasets import Dataset, Split
from znorm.lab.losses import LOSSES
from znorm.lab.models import MODELS
from znorm.lab.spec import RunSpec, resolve
from znorm.lab.training import loop
from znorm.lab.training.checkpoint import hash_weights
from znorm.lab.training.pipeline import Pipeline
from znorm.lab.training.sampler import batches

STEPS, BATCH, PIECE, SIDE = 20, 4, 2, 32
LARGE = (
    "resnet101",
    "resnet152",
    "densenet121",
    "densenet169",
    "mobilenetv2",
    "resnet50_unet",
    "unetplusplus",
)


def made_up(output: str) -> Dataset:
    random = torch.Generator().manual_seed(0)

    def part(number: int) -> Split:
        shape = (number, 3, SIDE, SIDE)
        images = torch.randint(0, 256, shape, generator=random, dtype=torch.uint8)
        masks = (images[:, 0] > 200).to(torch.uint8)
        return Split(images, masks if output == "mask" else images[:, 0, 0, 0].long() % 3)

    # 20 steps: the last batch is not whole, nor are its pieces.
    classes = ("none", "some") if output == "mask" else ("a", "b", "c")
    return Dataset(part(STEPS * BATCH - 1), part(0), part(2), classes)


def tversky_by_hand(logits: Tensor, truth: Tensor) -> Tensor:
    share, truth = logits[:, 0].sigmoid(), truth.to(logits.dtype)
    hit = (share * truth).sum()
    wrong, missed = (share * (1 - truth)).sum(), ((1 - share) * truth).sum()
    return 1 - (hit + 1) / (hit + 0.3 * wrong + 0.7 * missed + 1)


def by_hand(of: RunSpec, dataset: Dataset) -> nn.Module:
    torch.manual_seed(of.seed)
    model = models.build(
        of.model, channels=3, classes=dataset.outputs, image_size=SIDE, **of.model_options
    )
    model = model.to(memory_format=torch.channels_last).double()
    optimizer = torch.optim.Adam(model.parameters(), of.learning_rate, fused=True)
    if of.method == "znorm":
        znorm.attach(optimizer, znorm.ZNorm(), model=model)
    mean, std = dataset.statistics
    for index in batches(of.seed, 0, len(dataset.train), BATCH):
        images = (dataset.train.images[index].float() - mean[:, None, None]) * (
            1 / std[:, None, None]
        )
        images = images.double().contiguous(memory_format=torch.channels_last)
        targets = dataset.train.targets[index]
        optimizer.zero_grad()
        pieces = max(1, min(-(-len(index) // PIECE), len(index) // 2))
        for some, truth in zip(
            images.tensor_split(pieces), targets.tensor_split(pieces), strict=True
        ):
            logits = model(some)
            loss = (
                F.cross_entropy(logits, truth)
                if logits.dim() == 2
                else LOSSES["tversky"](logits, truth)
            )
            if pieces > 1:
                loss = loss * (len(some) / len(images))
            loss.backward()
        optimizer.step()
    return model


@pytest.mark.parametrize(
    ("model", "method"),
    [
        pytest.param(model, "baseline", marks=[pytest.mark.slow] if model in LARGE else [])
        for model in MODELS
    ]
    + [("resnet56", "znorm")],
)
def test_20_steps_of_each_model_in_float64(
    model: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = MODELS[model].output
    task = "phantom" if output == "mask" else "pcam_mini"
    of = resolve(
        {
            "task": task,
            "model": model,
            "method": method,
            "epochs": 1,
            "batch_size": BATCH,
            "micro_batch": PIECE,
            "data.augment": "none",
            "device": "cpu",
            "precision": "float32",
        }
    )
    dataset = made_up(output)
    real_set_up, real_images = loop.set_up, Pipeline._normalized

    def set_up(spec: RunSpec, images: Dataset) -> tuple[nn.Module, torch.optim.Optimizer]:
        net, optimizer = real_set_up(spec, images)
        net.double()  # the optimizer holds the same parameters
        return net, optimizer

    monkeypatch.setattr(loop, "set_up", set_up)
    monkeypatch.setattr(Pipeline, "_normalized", lambda self, x: real_images(self, x).double())
    outcome = loop.train(of, dataset, Watch(), [], lambda content: None)
    assert outcome.status == "done"
    assert outcome.hashes["final_weights"] == hash_weights(by_hand(of, dataset))


def test_the_loss_of_masks_is_the_written_out_one() -> None:
    random = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 1, 8, 8, generator=random, dtype=torch.float64)
    truth = torch.randint(0, 2, (3, 8, 8), generator=random, dtype=torch.uint8)
    ours = LOSSES["tversky"](logits, truth)
    torch.testing.assert_close(ours, tversky_by_hand(logits, truth), rtol=1e-12, atol=0)
