"""A training that goes on from a framework's checkpoint ends as one that was not disturbed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import znorm
from frameworks.small_training import (
    BATCH,
    EPS,
    IMAGES,
    LR,
    Net,
    adamw,
    batches,
    hf_trainer,
    lightning_module,
    lightning_trainer,
    plain,
    weights,
)

pytestmark = pytest.mark.slow

TRANSFORMS = [pytest.param(None, id="none"), pytest.param(znorm.ZNorm(), id="znorm")]


def equal(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("way", ["callback", "configure_optimizers"])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_lightning(transform: Any, way: str, tmp_path: Path) -> None:
    from znorm.integrations.lightning import GradientTransform

    def fit(epochs: int, **options: Any) -> tuple[Any, Any]:
        module = lightning_module(transform if way == "configure_optimizers" else None)
        by_callback = way == "callback" and transform is not None
        callbacks = [GradientTransform(transform)] if by_callback else []
        trainer = lightning_trainer(tmp_path, *callbacks, max_epochs=epochs)
        trainer.fit(module, batches(), **options)
        return trainer, module

    half, _ = fit(1)
    half.save_checkpoint(tmp_path / "half.ckpt")
    _, resumed = fit(2, ckpt_path=tmp_path / "half.ckpt")
    _, whole = fit(2)
    equal(weights(resumed), weights(whole))
    for one, other in zip(weights(whole), plain(transform, epochs=2), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("way", ["adamw", "mixin"])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transformers(transform: Any, way: str, tmp_path: Path) -> None:
    from znorm.integrations.transformers import GradientTransformMixin
    from znorm.integrations.transformers import adamw as adamw_of_trainer

    def trainer(**options: Any) -> Any:
        given: dict[str, Any] = {"transform": transform}
        if way == "adamw":
            given = {"optimizer_cls_and_kwargs": adamw_of_trainer(transform, lr=LR, eps=EPS)}
        mixins = (GradientTransformMixin,) if way == "mixin" else ()
        steps = {"save_strategy": "steps", "save_steps": 4, "max_grad_norm": 0}
        return hf_trainer(tmp_path, mixins, given=given, **steps, **options)

    whole = trainer()
    whole.train()
    (tmp_path / "checkpoint-8").rename(tmp_path / "whole")
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert resumed.state.global_step == 8
    equal(weights(resumed.model), weights(whole.model))
    for one, other in zip(weights(whole.model), plain(transform, groups=True), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_accelerate(transform: Any, tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")

    def train(images: Tensor, state: Path | None = None) -> tuple[Any, nn.Module]:
        accelerator = accelerate.Accelerator(cpu=True)
        model: nn.Module = Net()
        model, optimizer = accelerator.prepare(model, adamw(model, transform))
        if state is not None:
            accelerator.load_state(state)
        for batch in images.split(BATCH):
            accelerator.backward(model(batch)["loss"])
            optimizer.step()
            optimizer.zero_grad()
        return accelerator, model

    accelerator, _ = train(IMAGES[:32])
    accelerator.save_state(tmp_path / "half")
    _, resumed = train(IMAGES[32:], tmp_path / "half")
    _, whole = train(IMAGES)
    equal(weights(resumed), weights(whole))
