"""The trainer of docs/frameworks/nnunet.md, in place of nnU-Net's own one that steps in its order.

nnU-Net itself is not run here: `Standin` repeats `nnUNetTrainer.configure_optimizers` and
`train_step` of its version 2.8.1, without a GPU.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import znorm
from frameworks.small_training import BATCH, IMAGES, Net, weights

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "frameworks" / "nnunet.md"


class Standin:
    initial_lr, weight_decay, num_epochs = 1e-2, 3e-5, 1000

    def __init__(self) -> None:
        self.network = Net()
        self.log: list[str] = []

    def print_to_log_file(self, *words: object) -> None:
        self.log.append(" ".join(map(str, words)))

    def configure_optimizers(self) -> tuple[Any, Any]:
        optimizer = torch.optim.SGD(
            self.network.parameters(),
            self.initial_lr,
            weight_decay=self.weight_decay,
            momentum=0.99,
            nesterov=True,
        )
        return optimizer, torch.optim.lr_scheduler.PolynomialLR(optimizer, self.num_epochs, 0.9)

    def train(self, transform: Any = None) -> None:
        optimizer, _ = self.configure_optimizers()
        if transform is not None:
            znorm.attach(optimizer, transform, model=self.network)
        for images in IMAGES.split(BATCH):
            optimizer.zero_grad(set_to_none=True)
            self.network(images)["loss"].backward()
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), 12)
            optimizer.step()


def test_the_trainer_of_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    names = "nnunetv2", "nnunetv2.training", "nnunetv2.training.nnUNetTrainer"
    for name in (*names, f"{names[-1]}.nnUNetTrainer"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    vars(sys.modules[f"{names[-1]}.nnUNetTrainer"])["nnUNetTrainer"] = Standin
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    scope: dict[str, Any] = {}
    exec(code, scope)
    trainer = scope["nnUNetTrainerZNorm"]()
    trainer.train()
    assert trainer.attachment.receipt()["net.0.weight"]["steps"] == 8
    assert "yes: ZNorm" in trainer.log[0]
    other = Standin()
    other.initial_lr = trainer.initial_lr
    other.train(znorm.ZNorm())
    for one, two in zip(weights(trainer.network), weights(other.network), strict=True):
        assert torch.equal(one, two)
