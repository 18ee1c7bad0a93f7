"""The trainer of docs/frameworks/nnunet.md against a loop written by hand.

On nnU-Net itself where it is installed (`pip install --no-deps nnunetv2`, and what its imports
ask for), else on `Standin` alone, which repeats what version 2.8.1 does in `__init__`,
`configure_optimizers` and `train_step`.
"""

from __future__ import annotations

import copy
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from frameworks.small_training import BATCH, IMAGES, Net

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "frameworks" / "nnunet.md"


class Standin:
    def __init__(self) -> None:
        self.initial_lr = 1e-2
        self.weight_decay = 3e-5
        self.num_epochs = 1000
        self.network = Net()
        self.grad_scaler: Any = None
        self.lines: list[str] = []

    def initialize(self) -> None:
        self.optimizer, self.lr_scheduler = self.configure_optimizers()

    def print_to_log_file(self, *words: object) -> None:
        self.lines.append(" ".join(map(str, words)))

    def configure_optimizers(self) -> tuple[Any, Any]:
        optimizer = torch.optim.SGD(
            self.network.parameters(),
            self.initial_lr,
            weight_decay=self.weight_decay,
            momentum=0.99,
            nesterov=True,
        )
        return optimizer, torch.optim.lr_scheduler.PolynomialLR(optimizer, self.num_epochs, 0.9)

    def train_step(self, batch: dict[str, Any]) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(self.network(batch["data"]), batch["target"])
        if self.grad_scaler is None:
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), 12)
            self.optimizer.step()
            return
        self.grad_scaler.scale(loss).backward()
        self.grad_scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 12)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def loss(self, output: Any, target: Any) -> Any:
        # Large, so that the clip to 12 has something to cut.
        return 1000 * output["loss"]


def trainer_of_the_page() -> Any:
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    scope: dict[str, Any] = {}
    exec(code, scope)
    return scope["nnUNetTrainerZNorm"]


def by_hand(trainer: Any, network: torch.nn.Module, batches: list[Any], lr: float) -> list[Any]:
    """SGD with Nesterov's momentum of z-scores in float64, after a clip to 12."""
    parameters = list(network.parameters())
    momenta = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
    for batch in batches:
        network.zero_grad()
        trainer.loss(network(batch["data"]), batch["target"]).backward()
        # The deepest output of deep supervision has no weight in the loss, and its layer none.
        pairs = [(p, m) for p, m in zip(parameters, momenta, strict=True) if p.grad is not None]
        norm = torch.stack([p.grad.double().norm() for p, _ in pairs]).norm()  # type: ignore[union-attr]
        for p, momentum in pairs:
            g = p.grad.double() * min(1.0, float(12 / (norm + 1e-6)))  # type: ignore[union-attr]
            if p.ndim > 1 and p.numel() > 1:
                g = (g - g.mean()) / (g.std(correction=0) + 1e-10) if g.any() else g
            g = g + trainer.weight_decay * p.detach().double()
            momentum.mul_(0.99).add_(g)
            p.data = (p.detach().double() - lr * (g + 0.99 * momentum)).float()
    return [p.detach() for p in parameters]


def assert_same(trainer: Any, expected: list[torch.Tensor]) -> None:
    for one, other in zip(trainer.network.parameters(), expected, strict=True):
        torch.testing.assert_close(one.detach(), other, rtol=0, atol=2e-6)


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> Any:
    names = "nnunetv2", "nnunetv2.training", "nnunetv2.training.nnUNetTrainer"
    for name in (*names, f"{names[-1]}.nnUNetTrainer"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    vars(sys.modules[f"{names[-1]}.nnUNetTrainer"])["nnUNetTrainer"] = Standin
    return trainer_of_the_page()()


@pytest.mark.parametrize("scaled", [False, True])
def test_on_a_standin(standin: Any, scaled: bool) -> None:
    standin.grad_scaler = torch.amp.GradScaler("cpu") if scaled else None
    standin.initialize()
    assert standin.optimizer.param_groups[0]["lr"] == 1e-4
    assert "yes: ZNorm" in standin.lines[0]
    batches = [{"data": images, "target": None} for images in IMAGES.split(BATCH)]
    expected = by_hand(standin, copy.deepcopy(standin.network), batches, lr=1e-4)
    for batch in batches:
        standin.train_step(batch)
    assert standin.attachment.receipt()["net.0.weight"]["steps"] == 8
    assert_same(standin, expected)


PLANS = {
    "continue_training": False,
    "dataset_name": "Dataset001_Random",
    "plans_name": "plans",
    "configurations": {
        "2d": {
            "data_identifier": "2d",
            "batch_size": 2,
            "patch_size": [16, 16],
            "batch_dice": False,
            "architecture": {
                "network_class_name": "dynamic_network_architectures.architectures.unet."
                "PlainConvUNet",
                "arch_kwargs": {
                    "n_stages": 3,
                    "features_per_stage": [4, 8, 8],
                    "conv_op": "torch.nn.modules.conv.Conv2d",
                    "kernel_sizes": [[3, 3]] * 3,
                    "strides": [[1, 1], [2, 2], [2, 2]],
                    "n_conv_per_stage": [1, 1, 1],
                    "n_conv_per_stage_decoder": [1, 1],
                    "conv_bias": True,
                    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
                    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                    "dropout_op": None,
                    "dropout_op_kwargs": None,
                    "nonlin": "torch.nn.LeakyReLU",
                    "nonlin_kwargs": {"inplace": True},
                },
                "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
            },
        }
    },
}
DATASET = {
    "labels": {"background": 0, "tumour": 1},
    "channel_names": {"0": "grey"},
    "file_ending": ".png",
}


def made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The trainer of the page on nnU-Net's own, with weights that are always the same."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(folder / name))
    monkeypatch.setenv("nnUNet_compile", "f")
    cases = folder / "nnUNet_preprocessed" / "Dataset001_Random" / "2d"
    cases.mkdir(parents=True, exist_ok=True)
    (cases / "case.npz").touch()  # the kind of data set is told by its files' names
    torch.manual_seed(0)
    return trainer_of_the_page()(copy.deepcopy(PLANS), "2d", 0, DATASET, torch.device("cpu"))


def random_batches() -> list[dict[str, Any]]:
    """As nnU-Net's loader gives them, the labels once more at half the size."""
    rng = torch.Generator().manual_seed(1)
    batches = []
    for _ in range(8):
        data = torch.randn(2, 1, 16, 16, generator=rng)
        label = (data > 0.5).float()
        batches.append({"data": data, "target": [label, label[..., ::2, ::2]]})
    return batches


@pytest.mark.parametrize("scaled", [False, True])
def test_on_nnunet_itself(scaled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nnunetv2", reason="nnunetv2 is not installed here: the stand-in alone")
    trainer = made(tmp_path, monkeypatch)
    trainer.grad_scaler = torch.amp.GradScaler("cpu") if scaled else None  # CUDA's own otherwise
    trainer.initialize()
    assert trainer.optimizer.param_groups[0]["lr"] == 1e-4
    batches = random_batches()
    expected = by_hand(trainer, copy.deepcopy(trainer.network), batches, lr=1e-4)
    for batch in batches:
        trainer.train_step(batch)
    assert_same(trainer, expected)
    assert "yes: ZNorm" in Path(trainer.log_file).read_text()


def test_a_checkpoint_of_nnunet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nnunetv2", reason="nnunetv2 is not installed here: the stand-in alone")
    trainer = made(tmp_path, monkeypatch)
    trainer.initialize()
    batches = random_batches()
    for batch in batches[:4]:
        trainer.train_step(batch)
    trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    for batch in batches[4:]:
        trainer.train_step(batch)
    other = made(tmp_path, monkeypatch)
    other.load_checkpoint(str(tmp_path / "checkpoint.pth"))
    for batch in batches[4:]:
        other.train_step(batch)
    for one, two in zip(trainer.network.parameters(), other.network.parameters(), strict=True):
        assert torch.equal(one, two)
