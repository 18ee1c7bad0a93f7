"""The same small training by plain torch and by each framework: the same weights to rounding.

Each case runs without a transform, too: a difference there is the framework's own.
"""

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

pytestmark = [
    pytest.mark.slow,
    # Each case that clips before ZNorm says so; test_lightning.py and test_transformers.py look.
    pytest.mark.filterwarnings("ignore:znorm. .* clips before:UserWarning"),
]

TRANSFORMS = [
    pytest.param(None, id="none"),
    pytest.param(znorm.ZNorm(), id="znorm"),
    pytest.param(znorm.chain(znorm.ZNorm(), znorm.ClipGlobalNorm(1.0)), id="chain"),
]
CASES: dict[str, dict[str, Any]] = {
    "float32": {},
    "bf16": {"bf16": True},
    "clipped": {"clip": 0.05},
    "accumulated": {"accumulate": 2},
    "all three": {"bf16": True, "clip": 0.05, "accumulate": 4},
}


def check(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_the_cases_differ() -> None:
    """A clip or a transform that is lost would show."""
    found = [plain(t.values[0], **case) for case in CASES.values() for t in TRANSFORMS]
    for position, one in enumerate(found):
        for other in found[:position]:
            assert max((a - b).abs().max() for a, b in zip(one, other, strict=True)) > 1e-4


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("case", CASES)
def test_lightning(case: str, transform: Any, tmp_path: Path) -> None:
    from znorm.integrations.lightning import GradientTransform

    options = CASES[case]
    module = lightning_module()
    callbacks = [] if transform is None else [GradientTransform(transform)]
    lightning_trainer(
        tmp_path,
        *callbacks,
        precision="bf16-mixed" if options.get("bf16") else "32-true",
        gradient_clip_val=options.get("clip"),
        accumulate_grad_batches=options.get("accumulate", 1),
    ).fit(module, batches())
    check(weights(module), plain(transform, **options))


@pytest.mark.parametrize("way", ["adamw", "mixin"])
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("case", CASES)
def test_transformers(case: str, transform: Any, way: str, tmp_path: Path) -> None:
    from znorm.integrations.transformers import GradientTransformMixin
    from znorm.integrations.transformers import adamw as adamw_of_trainer

    options = CASES[case]
    mixins: tuple[type, ...] = ()
    given: dict[str, Any] = {}
    if way == "mixin" and transform is not None:
        mixins, given = (GradientTransformMixin,), {"transform": transform}
    elif way == "adamw":
        given = {"optimizer_cls_and_kwargs": adamw_of_trainer(transform, lr=LR, eps=EPS)}
    trainer = hf_trainer(
        tmp_path,
        mixins,
        given=given,
        bf16=options.get("bf16", False),
        max_grad_norm=options.get("clip", 0.0),
        gradient_accumulation_steps=options.get("accumulate", 1),
    )
    trainer.train()
    check(weights(trainer.model), plain(transform, groups=True, **options))


@pytest.mark.parametrize("first", ["attach", "prepare"])
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("case", CASES)
def test_accelerate(case: str, transform: Any, first: str) -> None:
    accelerate = pytest.importorskip("accelerate")
    from accelerate.state import AcceleratorState, GradientState

    options = CASES[case]
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    accelerator = accelerate.Accelerator(
        cpu=True,
        mixed_precision="bf16" if options.get("bf16") else "no",
        gradient_accumulation_steps=options.get("accumulate", 1),
    )
    model: nn.Module = Net()
    optimizer: Any = adamw(model, transform if first == "attach" else None)
    model, optimizer, data = accelerator.prepare(model, optimizer, batches())
    if first == "prepare" and transform is not None:
        znorm.attach(optimizer, transform, model=model)
    for images in data:
        with accelerator.accumulate(model):
            accelerator.backward(model(images)["loss"])
            if accelerator.sync_gradients and options.get("clip"):
                accelerator.clip_grad_norm_(model.parameters(), options["clip"])
            optimizer.step()
            optimizer.zero_grad()
    check(weights(model), plain(transform, **options))


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("case", CASES)
def test_fabric(case: str, transform: Any) -> None:
    fabrics = pytest.importorskip("lightning.fabric")
    options = CASES[case]
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
    check(weights(base), plain(transform, bf16_images=options.get("bf16", False), **options))
