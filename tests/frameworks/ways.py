"""Ways to train the small training of `small_training.py`: a function for each framework's form.

Each takes a case's options and a transform, or None, and gives the weights after the training.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
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

CASES: dict[str, dict[str, Any]] = {
    "float32": {},
    "bf16": {"bf16": True},
    "clipped": {"clip": 0.05},
    "accumulated": {"accumulate": 2},
    "all three": {"bf16": True, "clip": 0.05, "accumulate": 4},
}
TRANSFORMS: dict[str, Any] = {
    "none": None,
    "ZNorm": znorm.ZNorm(),
    "ZNorm, then a clip": znorm.chain(znorm.ZNorm(), znorm.ClipGlobalNorm(1.0)),
}


def lightning(options: dict[str, Any], transform: Any) -> list[Tensor]:
    """The callback."""
    pytest.importorskip("lightning")
    from znorm.integrations.lightning import GradientTransform

    module = lightning_module()
    callbacks = [] if transform is None else [GradientTransform(transform)]
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning_trainer(
            Path(folder),
            *callbacks,
            precision="bf16-mixed" if options.get("bf16") else "32-true",
            gradient_clip_val=options.get("clip"),
            accumulate_grad_batches=options.get("accumulate", 1),
        )
        trainer.fit(module, batches())
    return weights(module)


def _transformers(
    options: dict[str, Any], mixins: tuple[type, ...], given: dict[str, Any]
) -> list[Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        trainer = hf_trainer(
            Path(folder),
            mixins,
            given=given,
            bf16=options.get("bf16", False),
            max_grad_norm=options.get("clip", 0.0),
            gradient_accumulation_steps=options.get("accumulate", 1),
        )
        trainer.train()
    return weights(trainer.model)


def transformers_adamw(options: dict[str, Any], transform: Any) -> list[Tensor]:
    """``optimizer_cls_and_kwargs``."""
    pytest.importorskip("transformers")
    from znorm.integrations.transformers import adamw as adamw_of_trainer

    chosen = adamw_of_trainer(transform, lr=LR, eps=EPS)
    return _transformers(options, (), {"optimizer_cls_and_kwargs": chosen})


def transformers_mixin(options: dict[str, Any], transform: Any) -> list[Tensor]:
    """The mixin; without a transform the Trainer as it comes."""
    pytest.importorskip("transformers")
    from znorm.integrations.transformers import GradientTransformMixin

    if transform is None:
        return _transformers(options, (), {})
    return _transformers(options, (GradientTransformMixin,), {"transform": transform})


def _accelerate(options: dict[str, Any], transform: Any, *, attach_first: bool) -> list[Tensor]:
    accelerate = pytest.importorskip("accelerate")
    from accelerate.state import AcceleratorState, GradientState

    # One process has one accelerator, with what the first one was given.
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    accelerator = accelerate.Accelerator(
        cpu=True,
        mixed_precision="bf16" if options.get("bf16") else "no",
        gradient_accumulation_steps=options.get("accumulate", 1),
    )
    model: nn.Module = Net()
    optimizer: Any = adamw(model, transform if attach_first else None)
    model, optimizer, data = accelerator.prepare(model, optimizer, batches())
    if not attach_first and transform is not None:
        znorm.attach(optimizer, transform, model=model)
    for images in data:
        with accelerator.accumulate(model):
            accelerator.backward(model(images)["loss"])
            if accelerator.sync_gradients and options.get("clip"):
                accelerator.clip_grad_norm_(model.parameters(), options["clip"])
            optimizer.step()
            optimizer.zero_grad()
    return weights(model)


def accelerate_before(options: dict[str, Any], transform: Any) -> list[Tensor]:
    """``attach``, then ``prepare``."""
    return _accelerate(options, transform, attach_first=True)


def accelerate_after(options: dict[str, Any], transform: Any) -> list[Tensor]:
    """``prepare``, then ``attach``."""
    return _accelerate(options, transform, attach_first=False)


def fabric(options: dict[str, Any], transform: Any) -> list[Tensor]:
    """``setup``, then ``attach``."""
    fabrics = pytest.importorskip("lightning.fabric")
    precision = "bf16-mixed" if options.get("bf16") else "32-true"
    fabric = fabrics.Fabric(accelerator="cpu", devices=1, precision=precision)
    base = Net()
    model, optimizer = fabric.setup(base, adamw(base))
    if transform is not None:
        znorm.attach(optimizer, transform, model=model)
    accumulate = options.get("accumulate", 1)
    for number, images in enumerate(IMAGES.split(BATCH), 1):
        fabric.backward(model(images)["loss"] / accumulate)
        if number % accumulate:
            continue
        if options.get("clip"):
            fabric.clip_gradients(model, optimizer, max_norm=options["clip"])
        optimizer.step()
        optimizer.zero_grad()
    return weights(base)


# With what a plain loop must have to be the same.
WAYS: dict[str, tuple[Callable[[dict[str, Any], Any], list[Tensor]], dict[str, Any]]] = {
    "Lightning, `GradientTransform`": (lightning, {}),
    "Fabric, `attach`": (fabric, {"rounds_images": True}),
    "transformers, `adamw`": (transformers_adamw, {"groups": True}),
    "transformers, `GradientTransformMixin`": (transformers_mixin, {"groups": True}),
    "accelerate, `attach` before `prepare`": (accelerate_before, {}),
    "accelerate, `attach` after `prepare`": (accelerate_after, {}),
}


def difference(way: str, case: str, transform: str) -> float:
    """The largest difference of a weight from the one that a plain loop of torch's own gives."""
    train, like = WAYS[way]
    found = train(CASES[case], TRANSFORMS[transform])
    expected = plain(TRANSFORMS[transform], **CASES[case], **like)
    return max((one - other).abs().max().item() for one, other in zip(found, expected, strict=True))
