"""Which precision a run takes where the user leaves it open."""

from __future__ import annotations

import pytest
from torch import nn

from znorm.lab import device, models


@pytest.mark.parametrize("name", models.MODELS)
@pytest.mark.parametrize("instructions", [True, False])
def test_auto_is_bfloat16_for_dense_convolutions_where_the_cpu_has_it(
    name: str, instructions: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "_cpu_has_bfloat16", lambda: instructions)
    net = models.build(name, channels=3, classes=2, image_size=64)
    grouped = any(isinstance(m, nn.Conv2d) and m.groups > 1 for m in net.modules())
    found = device.resolve_precision("auto", "cpu", name)
    assert found == ("bfloat16" if instructions and not grouped else "float32")


def test_models_of_other_libraries_take_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_cpu_has_bfloat16", lambda: True)
    assert device.resolve_precision("auto", "cpu", "torchvision:resnet18") == "float32"
    assert device.resolve_precision("bfloat16", "cpu", "torchvision:resnet18") == "bfloat16"


def test_what_is_asked_for_is_taken() -> None:
    assert device.resolve_precision("float32", "cpu", "resnet20") == "float32"
