"""The real wrappers of `tests/test_wrappers.py`: ``make test-all`` installs them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import znorm
from frameworks.small_training import lightning_trainer
from kit import net

pytestmark = pytest.mark.slow

IMAGES = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))


def loss_of(model: Any, images: Tensor) -> Tensor:
    loss: Tensor = (model(images) - images[:, :1]).square().mean()
    return loss


def expected(steps: int, **options: Any) -> list[Tensor]:
    """The weights after so many steps without any wrapper."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, **options)
    znorm.attach(optimizer, znorm.ZNorm(), model=model)
    for images in IMAGES.split(8)[:steps]:
        optimizer.zero_grad()
        loss_of(model, images).backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()]


def check(model: nn.Module, steps: int) -> None:
    for one, other in zip(model.parameters(), expected(steps), strict=True):
        torch.testing.assert_close(one.detach(), other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("manual", [False, True])
def test_lightnings_optimizers(manual: bool, tmp_path: Any) -> None:
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = net()
            self.automatic_optimization = not manual

        def on_train_start(self) -> None:
            self.attachment = znorm.attach(self.optimizers(), znorm.ZNorm(), model=self)
            with pytest.raises(ValueError, match="attached already"):
                znorm.attach(self.trainer.optimizers[0], znorm.ZNorm())

        def training_step(self, batch: Any, number: int) -> Any:
            loss = loss_of(self.net, batch)
            if manual:
                optimizer = self.optimizers()
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = Module()
    trainer = lightning_trainer(tmp_path)
    trainer.fit(module, torch.utils.data.DataLoader(IMAGES, batch_size=8))
    check(module.net, 4)
    assert module.attachment.receipt()["net.0.weight"]["steps"] == 4


def test_a_transform_in_lightnings_hyperparameters(tmp_path: Any) -> None:
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, transform: Any) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.net = net()

        def training_step(self, batch: Any, number: int) -> Any:
            return loss_of(self.net, batch)

        def configure_optimizers(self) -> Any:
            return znorm.optim.SGD(self.parameters(), lr=0.1, transform=self.hparams.transform)

    trainer = lightning_trainer(tmp_path, max_steps=2)
    chain = znorm.chain(znorm.ZNorm(), znorm.ClipNorm(1.0))
    trainer.fit(Module(chain), torch.utils.data.DataLoader(IMAGES, batch_size=8))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    found = Module.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert found.hparams.transform == chain


@pytest.mark.parametrize("wrapped", [True, False])
def test_fabrics_optimizer(wrapped: bool) -> None:
    fabrics = pytest.importorskip("lightning.fabric")
    fabric = fabrics.Fabric(accelerator="cpu", devices=1)
    model: Any = net()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    module, optimizer = fabric.setup(model, base)
    attachment = znorm.attach(optimizer if wrapped else base, znorm.ZNorm(), model=module)
    with pytest.raises(ValueError, match="attached already"):
        znorm.attach(base if wrapped else optimizer, znorm.ZNorm())
    for images in IMAGES.split(8):
        optimizer.zero_grad()
        fabric.backward(loss_of(module, images))
        optimizer.step()
    check(model, 4)
    assert list(attachment.receipt()) == ["0.weight", "2.weight"]


@pytest.mark.parametrize("wrapped", [True, False])
def test_accelerates_optimizer(wrapped: bool) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    model: Any = net()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    if not wrapped:
        attachment = znorm.attach(base, znorm.ZNorm(), model=model)
    prepared, optimizer = accelerator.prepare(model, base)
    if wrapped:
        attachment = znorm.attach(optimizer, znorm.ZNorm(), model=prepared)
    with pytest.raises(ValueError, match="attached already"):
        znorm.attach(optimizer, znorm.ZNorm())
    for images in IMAGES.split(8):
        optimizer.zero_grad()
        accelerator.backward(loss_of(prepared, images))
        optimizer.step()
    check(model, 4)
    assert attachment.receipt()["0.weight"]["steps"] == 4


def test_schedulefrees_wrapper_and_its_own_optimizer() -> None:
    schedulefree = pytest.importorskip("schedulefree")
    model = net()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapper = schedulefree.ScheduleFreeWrapper(base)
    with pytest.raises(TypeError, match=r"ScheduleFreeWrapper wraps another one, .* \.base$"):
        znorm.attach(wrapper, znorm.ZNorm())
    own = net()
    optimizers = [(model, base, wrapper)]
    adam = schedulefree.AdamWScheduleFree(own.parameters(), lr=0.1)
    optimizers.append((own, adam, adam))
    for trained, to, optimizer in optimizers:
        attachment = znorm.attach(to, znorm.ZNorm(), model=trained)
        optimizer.train()
        for images in IMAGES.split(8):
            optimizer.zero_grad()
            loss_of(trained, images).backward()
            optimizer.step()
        found = attachment.receipt()["0.weight"]
        assert found["steps"] == 4
        assert found["norm_after"] == pytest.approx(48**0.5, rel=1e-4)


def test_torchs_own_local_sgd() -> None:
    from torch.distributed.algorithms.model_averaging.averagers import ModelAverager
    from torch.distributed.optim import PostLocalSGDOptimizer

    class Never(ModelAverager):
        def __init__(self) -> None: ...
        def average_parameters(self, params: Any) -> None: ...

    model = net()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapper = PostLocalSGDOptimizer(base, Never())
    with pytest.raises(TypeError, match=r"PostLocalSGDOptimizer wraps another one, .* \.optim$"):
        znorm.attach(wrapper, znorm.ZNorm())
    znorm.attach(base, znorm.ZNorm(), model=model)
    for images in IMAGES.split(8):
        base.zero_grad()
        loss_of(model, images).backward()
        wrapper.step()
    check(model, 4)


@pytest.mark.parametrize("name", ["SAM", "Lookahead"])
def test_wrappers_of_pytorch_optimizer(name: str) -> None:
    peers = pytest.importorskip("pytorch_optimizer")
    model = net()
    if name == "SAM":
        wrapper = peers.SAM(model.parameters(), torch.optim.SGD, lr=0.1)
        with pytest.raises(TypeError, match=r"SAM wraps another one, .* \.base_optimizer$"):
            znorm.attach(wrapper, znorm.ZNorm())
        attachment = znorm.attach(wrapper.base_optimizer, znorm.ZNorm(), model=model)
    else:
        wrapper = peers.Lookahead(torch.optim.SGD(model.parameters(), lr=0.1), k=100)
        attachment = znorm.attach(wrapper, znorm.ZNorm(), model=model)
    for images in IMAGES.split(8):
        wrapper.zero_grad()
        loss_of(model, images).backward()
        if name == "SAM":
            wrapper.first_step(zero_grad=True)
            loss_of(model, images).backward()
            wrapper.second_step(zero_grad=True)
        else:
            wrapper.step()
    found = attachment.receipt()["0.weight"]
    assert found["steps"] == 4
    assert found["norm_after"] == pytest.approx(48**0.5, rel=1e-4)


def test_gpt2s_layers() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2, add_cross_attention=True
    )
    model = transformers.GPT2LMHeadModel(config)
    layout = znorm.Layout(model.named_parameters(), znorm.Centralize(), model=model)
    rows = {row["name"]: row for row in layout.describe().rows}
    block = "transformer.h.0"
    assert rows[f"{block}.attn.c_attn.weight"]["why"] == (
        "Centralize by axis 1; 3 layers along axis 1"
    )
    assert rows[f"{block}.attn.c_attn.weight"]["units"] == 24
    assert rows[f"{block}.crossattention.c_attn.weight"]["units"] == 16
    assert rows[f"{block}.mlp.c_fc.weight"]["why"] == "Centralize by axis 1"
    assert rows[f"{block}.mlp.c_fc.weight"]["units"] == 32


def test_the_trainer_of_transformers_given_a_class_and_its_arguments(tmp_path: Any) -> None:
    """It takes ``model`` for itself; rules by name need the model all the same."""
    transformers = pytest.importorskip("transformers")

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, images: Tensor) -> dict[str, Tensor]:
            return {"loss": loss_of(self.net, images)}

    model = Wrapped()
    rules = [("net.2.*", False)]
    trainer = transformers.Trainer(
        model,
        transformers.TrainingArguments(
            str(tmp_path), use_cpu=True, max_steps=2, save_strategy="no", report_to=[]
        ),
        train_dataset=[{"images": image} for image in IMAGES],
        optimizer_cls_and_kwargs=(
            znorm.optim.AdamW,
            {"lr": 0.1, "transform": znorm.ZNorm(select=rules), "module": model},
        ),
    )
    trainer.train()
    attachment = znorm.attachment_of(trainer.optimizer)
    assert attachment is not None
    assert {name: values["steps"] for name, values in attachment.receipt().items()} == {
        "net.0.weight": 2
    }
