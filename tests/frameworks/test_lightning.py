"""The callback for Lightning: where it attaches, what it logs, what it refuses and warns of."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import znorm
from frameworks.small_training import (
    IMAGES,
    adamw,
    batches,
    lightning_module,
    lightning_trainer,
    plain,
    weights,
)
from znorm import receipts

pytestmark = pytest.mark.slow

lightning = pytest.importorskip("lightning")

from znorm.integrations import versions  # noqa: E402
from znorm.integrations.lightning import GradientTransform  # noqa: E402


class Kept(lightning.pytorch.loggers.logger.DummyLogger):  # type: ignore[misc, name-defined]
    """A logger that keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[int, dict[str, float]] = {}

    def log_metrics(self, metrics: Any, step: Any = None) -> None:
        self.lines[step] = dict(metrics)


def test_the_loggers_get_the_receipt_of_the_steps_since(tmp_path: Path) -> None:
    logger = Kept()
    callback = GradientTransform(znorm.ZNorm(), log_receipt=True)
    trainer = lightning_trainer(tmp_path, callback, logger=logger, log_every_n_steps=4)
    trainer.fit(lightning_module(), batches())
    names = {f"znorm/{f}/model.net.{n}.weight" for f in receipts.FIELDS for n in (0, 2)}
    assert {step: set(line) for step, line in logger.lines.items()} == {4: names, 8: names}
    # A z-score of n entries has the norm of the root of n.
    assert logger.lines[8]["znorm/norm_after/model.net.0.weight"] == pytest.approx(48**0.5)
    # Norms by hand, of the gradients of the last four steps.
    module = lightning_module()
    optimizer = adamw(module, znorm.ZNorm())
    norms = []
    for images in IMAGES.split(8):
        optimizer.zero_grad()
        module.model(images)["loss"].backward()
        norms.append(module.model.net[0].weight.grad.norm().item())
        optimizer.step()
    found = logger.lines[8]["znorm/norm_before/model.net.0.weight"]
    assert found == pytest.approx(sum(norms[4:]) / 4, rel=1e-5)


def test_without_being_asked_nothing_is_logged(tmp_path: Path) -> None:
    logger = Kept()
    trainer = lightning_trainer(
        tmp_path, GradientTransform(znorm.ZNorm()), logger=logger, log_every_n_steps=1
    )
    trainer.fit(lightning_module(), batches())
    assert logger.lines == {}


def test_with_accumulation_a_step_is_logged_once(tmp_path: Path) -> None:
    logger = Kept()
    callback = GradientTransform(znorm.ZNorm(), log_receipt=True)
    options = {"logger": logger, "log_every_n_steps": 1, "accumulate_grad_batches": 4}
    lightning_trainer(tmp_path, callback, **options).fit(lightning_module(), batches())
    assert sorted(logger.lines) == [1, 2]


def test_two_callbacks_are_refused(tmp_path: Path) -> None:
    both = [GradientTransform(znorm.ZNorm()), GradientTransform(znorm.ClipNorm(1.0))]
    trainer = lightning_trainer(tmp_path, *both)
    with pytest.raises(ValueError, match=r"callbacks: found 2 of GradientTransform; give one"):
        trainer.fit(lightning_module(), batches())
    with pytest.raises(RuntimeError, match=r"more than one stateful callback .*GradientTransform"):
        lightning_trainer(tmp_path, *(GradientTransform(znorm.ZNorm()) for _ in range(2)))


def test_an_optimizer_with_a_transform_is_refused(tmp_path: Path) -> None:
    trainer = lightning_trainer(tmp_path, GradientTransform(znorm.ClipNorm(1.0)))
    with pytest.raises(ValueError, match=r"on top of Attachment\(ZNorm.* leave one of the two out"):
        trainer.fit(lightning_module(znorm.ZNorm()), batches())


def test_a_module_is_trained_again_and_a_trainer_used_for_another(tmp_path: Path) -> None:
    callback = GradientTransform(znorm.ZNorm())
    module = lightning_module()
    lightning_trainer(tmp_path, callback).fit(module, batches())
    (first,) = callback.attachments
    trainer = lightning_trainer(tmp_path, callback)
    trainer.fit(module, batches())
    (second,) = callback.attachments
    assert second is not first
    # After training the transform is out of the optimizer.
    assert znorm.attachment_of(trainer.optimizers[0]) is None if trainer.optimizers else True


def test_each_of_several_optimizers(tmp_path: Path) -> None:
    class Two(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.first, self.second = torch.nn.Linear(6, 2), torch.nn.Linear(6, 2)

        def training_step(self, images: Any, number: int) -> None:
            for optimizer, net in zip(self.optimizers(), (self.first, self.second), strict=True):
                optimizer.zero_grad()
                self.manual_backward(net(images).square().mean())
                optimizer.step()

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(n.parameters(), lr=0.1) for n in (self.first, self.second)]

    callback = GradientTransform(znorm.ZNorm())
    lightning_trainer(tmp_path, callback).fit(Two(), batches())
    first, second = (one.receipt() for one in callback.attachments)
    assert (list(first), list(second)) == (["first.weight"], ["second.weight"])
    assert first["first.weight"]["steps"] == second["second.weight"]["steps"] == 8


def test_a_clip_that_is_void_is_said_once(tmp_path: Path) -> None:
    trainer = lightning_trainer(
        tmp_path, GradientTransform(znorm.ZNorm()), gradient_clip_val=0.5, max_epochs=2
    )
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        trainer.fit(lightning_module(), batches())
    (text,) = [str(one.message) for one in found if str(one.message).startswith("znorm:")]
    assert "Trainer(gradient_clip_val=0.5) clips before ZNorm(" in text
    assert "2 of 4 tensors" in text
    assert "the other 2 are shrunk" in text


@pytest.mark.filterwarnings("error::UserWarning:znorm")
@pytest.mark.parametrize(
    ("transform", "options"),
    [
        (znorm.Centralize(), {"gradient_clip_val": 0.5}),
        (None, {"gradient_clip_val": 0.5}),
        (znorm.ZNorm(), {"gradient_clip_val": 0.5, "gradient_clip_algorithm": "value"}),
        (znorm.ZNorm(), {}),
    ],
)
def test_a_clip_that_counts_is_not(transform: Any, options: Any, tmp_path: Path) -> None:
    trainer = lightning_trainer(tmp_path, GradientTransform(transform), **options)
    trainer.fit(lightning_module(), batches())


def test_a_checkpoint_knows_its_transform(tmp_path: Path) -> None:
    trainer = lightning_trainer(tmp_path, GradientTransform(znorm.ZNorm()))
    trainer.fit(lightning_module(), batches())
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resume = {"ckpt_path": tmp_path / "half.ckpt"}
    other = lightning_trainer(tmp_path, GradientTransform(znorm.UnitNorm()), max_epochs=2)
    with pytest.warns(
        UserWarning, match=r"add the following callbacks: .*GradientTransform.*ZNorm"
    ):
        other.fit(lightning_module(), batches(), **resume)
    none = lightning_trainer(tmp_path, max_epochs=2)
    with pytest.warns(UserWarning, match="GradientTransform"):
        none.fit(lightning_module(), batches(), **resume)


OTHER = """
import sys
import pytorch_lightning, torch, znorm
from znorm.integrations.lightning import GradientTransform

class Module(pytorch_lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(6, 2)

    def training_step(self, images, number):
        return self.net(images).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

callback = GradientTransform(znorm.ZNorm())
trainer = pytorch_lightning.Trainer(
    accelerator="cpu",
    callbacks=[callback],
    default_root_dir=sys.argv[1],
    enable_checkpointing=False,
    logger=False,
    max_epochs=1,
)
trainer.fit(Module(), torch.utils.data.DataLoader(torch.randn(32, 6), batch_size=8))
assert callback.attachments[0].receipt()["net.weight"]["steps"] == 4
"""


def test_the_other_package_of_lightning(tmp_path: Path) -> None:
    pytest.importorskip("pytorch_lightning")
    command = [sys.executable, "-c", OTHER, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("way", ["optimizer", "callback"])
def test_the_command_line(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cli = pytest.importorskip("lightning.pytorch.cli")
    pytest.importorskip("jsonargparse")
    optimizer = "znorm.optim.AdamW" if way == "optimizer" else "torch.optim.AdamW"
    arguments = [
        "fit",
        "--trainer.max_epochs=1",
        "--trainer.accelerator=cpu",
        "--trainer.logger=false",
        "--trainer.enable_checkpointing=false",
        "--trainer.enable_progress_bar=false",
        f"--trainer.default_root_dir={tmp_path}",
        f"--optimizer={optimizer}",
        "--optimizer.lr=0.05",
        "--optimizer.eps=0.01",
        "--optimizer.weight_decay=0.1",
    ]
    if way == "optimizer":
        arguments += ["--optimizer.transform=znorm.ZNorm", "--optimizer.transform.eps=1e-10"]
    else:
        arguments += [
            "--trainer.callbacks+=znorm.integrations.lightning.GradientTransform",
            "--trainer.callbacks.transform=znorm.ZNorm",
        ]

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = lightning_module().model

        def training_step(self, images: Any, number: int) -> Any:
            return self.model(images)["loss"]

    class Data(lightning.LightningDataModule):  # type: ignore[misc, name-defined]
        def train_dataloader(self) -> Any:
            return batches()

    monkeypatch.chdir(tmp_path)
    ran = cli.LightningCLI(
        Module, Data, args=arguments, seed_everything_default=False, save_config_callback=None
    )
    for one, two in zip(weights(ran.model), plain(znorm.ZNorm()), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-6)


def test_a_version_that_is_not_tested_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(versions.TESTED, "lightning", ("1.0", "1.9"))
    versions.warn_if_untested.cache_clear()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        GradientTransform(znorm.ZNorm())
        GradientTransform(znorm.ZNorm())
    versions.warn_if_untested.cache_clear()
    (text,) = [str(one.message) for one in found]
    assert "outside of the versions that znorm is tested with, 1.0 to 1.9" in text
