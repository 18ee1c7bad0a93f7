"""timm's optimizers, scaler and Lookahead; the rest of timm needs torchvision and stays out."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import pytest
import torch

import znorm
from frameworks.small_training import BATCH, IMAGES, Net, weights

pytestmark = pytest.mark.slow


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package without what its own file imports, torchvision among it."""
    spec = find_spec("timm")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("timm is not installed")
    (folder,) = spec.submodule_search_locations
    for name in ("timm", "timm.models", "timm.utils"):
        module = ModuleType(name)
        module.__path__ = [folder + name.removeprefix("timm").replace(".", "/")]
        monkeypatch.setitem(sys.modules, name, module)
    # Rates by layer alone ask for it.
    vars(sys.modules["timm.models"])["group_parameters"] = None
    yield
    for name in [name for name in sys.modules if name.startswith("timm.")]:
        monkeypatch.delitem(sys.modules, name, raising=False)


def trained(transform: Any, *, clip: float | None, every: int, scaled: bool) -> list[torch.Tensor]:
    """timm's train.py in short: its groups, its scaler, its clip, ``need_update``."""
    from timm.optim import create_optimizer_v2  # type: ignore[import-not-found, import-untyped]
    from timm.utils.cuda import NativeScaler  # type: ignore[import-not-found, import-untyped]

    model = Net()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=0.05, weight_decay=0.1, eps=0.01)
    if transform is not None:
        znorm.attach(optimizer, transform, model=model)
    scaler = NativeScaler(device="cpu")
    for number, images in enumerate(IMAGES.split(BATCH), 1):
        loss = model(images)["loss"] / every
        update = number % every == 0
        if scaled:
            scaler(
                loss, optimizer, clip_grad=clip, parameters=model.parameters(), need_update=update
            )
        else:
            loss.backward()
            if update and clip is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            if update:
                optimizer.step()
        if update:
            optimizer.zero_grad()
    return weights(model)


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize("transform", [None, znorm.ZNorm()], ids=["none", "znorm"])
@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("every", [1, 2])
def test_timms_scaler_and_a_plain_loop(transform: Any, clip: float | None, every: int) -> None:
    found = trained(transform, clip=clip, every=every, scaled=True)
    expected = trained(transform, clip=clip, every=every, scaled=False)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize("clip", [None, 0.05])
def test_a_step_that_overflowed_changes_nothing(clip: float | None) -> None:
    from timm.optim import create_optimizer_v2
    from timm.utils.cuda import NativeScaler

    model = Net()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=0.05, weight_decay=0.1)
    attachment = znorm.attach(optimizer, znorm.ZNorm(), model=model)
    scaler = NativeScaler(device="cpu")
    before = weights(model)
    for images, overflows in ((IMAGES[:BATCH] * 1e36, True), (IMAGES[:BATCH], False)):
        optimizer.zero_grad()
        loss = model(images)["loss"]
        scaler(loss, optimizer, clip_grad=clip, parameters=model.parameters())
        assert (attachment.receipt() == {}) == overflows
        same = [torch.equal(one, two) for one, two in zip(before, weights(model), strict=True)]
        assert all(same) == overflows


@pytest.mark.usefixtures("timm")
def test_timms_lookahead() -> None:
    from timm.optim import create_optimizer_v2

    model = Net()
    optimizer = create_optimizer_v2(model, opt="lookahead_adamw", lr=0.05)
    with pytest.raises(TypeError, match=r"Lookahead wraps another one, .* \._base_optimizer$"):
        znorm.attach(optimizer, znorm.ZNorm(), model=model)
    attachment = znorm.attach(optimizer._base_optimizer, znorm.ZNorm(), model=model)
    for images in IMAGES.split(BATCH):
        optimizer.zero_grad()
        model(images)["loss"].backward()
        optimizer.step()
    assert attachment.receipt()["net.0.weight"]["steps"] == 8


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize(
    "name", ["adamw", "lamb", "lion", "adan", "sgd", "nadamw", "madgrad", "laprop", "adopt"]
)
def test_timms_own_optimizers_run_it(name: str) -> None:
    from timm.optim import create_optimizer_v2

    model = Net()
    optimizer = create_optimizer_v2(model, opt=name, lr=0.01, weight_decay=0.05)
    attachment = znorm.attach(optimizer, znorm.ZNorm(), model=model)
    for images in IMAGES.split(BATCH):
        optimizer.zero_grad()
        model(images)["loss"].backward()
        optimizer.step()
    found = attachment.receipt()["net.0.weight"]
    assert found["steps"] == 8
    assert found["norm_after"] == pytest.approx(48**0.5, rel=1e-4)
