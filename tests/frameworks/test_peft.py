"""peft: adapters are trained and transformed, frozen weights of the base model said to be so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import znorm
from frameworks.small_training import IMAGES
from kit import net

pytestmark = pytest.mark.slow


def adapted() -> Any:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["0"], modules_to_save=["2"])
    return peft.get_peft_model(net(), config)


@pytest.mark.parametrize("all_of_them", [True, False])
def test_adapters_are_transformed_and_the_base_is_frozen(all_of_them: bool) -> None:
    model = adapted()
    parameters = [p for p in model.parameters() if all_of_them or p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.1)
    attachment = znorm.attach(optimizer, znorm.ZNorm(), model=model)
    rows = {row["name"].rpartition("model.")[2]: row for row in attachment.describe().rows}
    transformed = {name for name, row in rows.items() if row["transformed"]}
    assert transformed == {
        "0.lora_A.default.weight",
        "0.lora_B.default.weight",
        "2.modules_to_save.default.weight",
    }
    frozen = {name: row["why"] for name, row in rows.items() if row["why"] == "frozen"}
    base = {"0.base_layer.weight": "frozen", "2.original_module.weight": "frozen"}
    assert frozen == (base if all_of_them else {})
    for images in IMAGES.split(8)[:3]:
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()
    assert {values["steps"] for values in attachment.receipt().values()} == {3}


def test_the_same_as_each_adapters_gradient_by_hand() -> None:
    model, other = adapted(), adapted()
    other.load_state_dict(model.state_dict())
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.1)
    znorm.attach(optimizer, znorm.ZNorm(), model=model)
    bare = torch.optim.SGD((p for p in other.parameters() if p.requires_grad), lr=0.1)
    for images in IMAGES.split(8)[:3]:
        for one, at in ((model, optimizer), (other, bare)):
            at.zero_grad()
            (one(images) - images[:, :1]).square().mean().backward()
        for parameter in other.parameters():
            if parameter.grad is not None and parameter.dim() > 1:
                g = parameter.grad.double()
                std = g.std(correction=0)
                parameter.grad.copy_((g - g.mean()) / (std + 1e-10) if std else nn.Parameter(0 * g))
        optimizer.step()
        bare.step()
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.detach(), two.detach(), rtol=0, atol=1e-5)
