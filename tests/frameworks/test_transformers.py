"""The Trainer of transformers: names and groups, its clip and its log, what is refused."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import znorm
from frameworks.small_training import DECAY, EPS, IMAGES, LR, Net, hf_trainer, plain, weights

pytestmark = pytest.mark.slow

transformers = pytest.importorskip("transformers")

from znorm.integrations import versions  # noqa: E402
from znorm.integrations.transformers import GradientTransformMixin, LogReceipt, adamw  # noqa: E402

RULES = [("net.2.*", False)]
MIXIN = (GradientTransformMixin,)


def said(trainer: Any) -> list[str]:
    """The warnings of znorm while it trains."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        trainer.train()
    return [str(one.message) for one in found if str(one.message).startswith("znorm:")]


def make_late(trainer: Any, wrapped: nn.Module) -> None:
    """Let it make the optimizer after it has wrapped the model, as each version does."""
    if "model" in inspect.signature(transformers.Trainer.create_optimizer).parameters:
        trainer.create_optimizer(wrapped)
    else:
        trainer.model = wrapped
        trainer.create_optimizer()


def by_adamw(folder: Path, transform: Any, *, lr: float = LR, **options: Any) -> Any:
    return hf_trainer(
        folder, given={"optimizer_cls_and_kwargs": adamw(transform, lr=lr)}, **options
    )


def by_mixin(folder: Path, transform: Any, **options: Any) -> Any:
    return hf_trainer(folder, MIXIN, given={"transform": transform}, **options)


@pytest.mark.parametrize("make", [by_adamw, by_mixin])
def test_rules_see_names_and_groups_stay(make: Any, tmp_path: Path) -> None:
    trainer = make(tmp_path, znorm.ZNorm(select=RULES), max_grad_norm=0)
    trainer.train()
    attachment = znorm.attachment_of(trainer.optimizer)
    assert attachment is not None
    assert {row["name"]: row["transformed"] for row in attachment.describe().rows} == {
        "net.0.weight": True,
        "net.0.bias": False,
        "net.2.weight": False,
        "net.2.bias": False,
    }
    groups = trainer.optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [DECAY, 0.0]
    assert [len(group["params"]) for group in groups] == [2, 2]


@pytest.mark.parametrize("make", [by_adamw, by_mixin])
def test_a_rule_that_matches_nothing_is_named(make: Any, tmp_path: Path) -> None:
    trainer = make(tmp_path, znorm.ZNorm(select=[("net.7.*", False)]))
    with pytest.raises(ValueError, match=r"net\.7\.\*"):
        trainer.train()


@pytest.mark.parametrize("make", [by_adamw, by_mixin])
def test_a_transform_for_each_group(make: Any, tmp_path: Path) -> None:
    trainer = make(tmp_path, [znorm.ZNorm(), znorm.UnitNorm(select="all")], max_grad_norm=0)
    trainer.train()
    attachment = znorm.attachment_of(trainer.optimizer)
    assert attachment is not None
    names = [row["name"] for row in attachment.describe().rows if row["transformed"]]
    assert names == ["net.0.weight", "net.2.weight", "net.0.bias"]  # a bias of one is left alone


@pytest.mark.parametrize("make", [by_adamw, by_mixin])
def test_the_clip_is_said_once_as_training_begins(make: Any, tmp_path: Path) -> None:
    trainer = make(tmp_path, znorm.ZNorm(), num_train_epochs=2)  # the Trainer's own default
    (text,) = said(trainer)
    assert "TrainingArguments(max_grad_norm=1.0) clips before ZNorm(" in text
    assert "2 of 4 tensors" in text
    assert "the other 2 are shrunk" in text
    assert "The grad_norm of the log is of before, too" in text
    assert said(trainer) == []  # goes on with the same optimizer


@pytest.mark.parametrize("make", [by_adamw, by_mixin])
@pytest.mark.parametrize(
    ("transform", "limit"), [(znorm.ZNorm(), 0.0), (znorm.Centralize(), 1.0), (None, 1.0)]
)
def test_a_clip_that_counts_is_not(make: Any, transform: Any, limit: float, tmp_path: Path) -> None:
    assert said(make(tmp_path, transform, max_grad_norm=limit)) == []


@pytest.mark.parametrize("make", [by_adamw, by_mixin])
def test_the_log_tells_what_is_stepped_on(make: Any, tmp_path: Path) -> None:
    seen: list[dict[str, float]] = []

    class Reporter(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
        def on_log(self, args: Any, state: Any, control: Any, logs: Any, **_: Any) -> None:
            seen.append(dict(logs))

    trainer = make(tmp_path, znorm.ZNorm(), max_grad_norm=0, logging_steps=4)
    trainer.add_callback(Reporter())
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert [line["step"] for line in lines] == [4, 8]
    for line in lines:
        # Z-scores of 48 and 8 entries: the root of their number.
        assert line["znorm/norm_after"] == pytest.approx(56**0.5, rel=1e-4)
        assert line["znorm/norm_before"] < 2
    assert [one["znorm/norm_after"] for one in seen if "loss" in one] == [
        line["znorm/norm_after"] for line in lines
    ]
    # Each line began the receipt anew, the last one after the last step.
    attachment = znorm.attachment_of(trainer.optimizer)
    assert attachment is not None
    assert attachment.receipt() == {}
    (end,) = [line for line in trainer.state.log_history if "train_loss" in line]
    assert not [name for name in end if name.startswith("znorm/")]


def test_the_trainers_own_norm_is_of_before(tmp_path: Path) -> None:
    """Its clip is void for weights, and not for biases."""
    trainer = by_adamw(tmp_path, znorm.ZNorm(), max_steps=1, logging_steps=1, max_grad_norm=1e-3)
    seen: dict[str, float] = {}

    class Look(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
        def on_optimizer_step(self, *_: Any, model: Any = None, **__: Any) -> None:
            seen.update({name: p.grad.norm().item() for name, p in model.named_parameters()})

    trainer.add_callback(Look())
    (text,) = said(trainer)
    assert "0.001" in text
    model = Net()
    model(IMAGES[:8])["loss"].backward()
    before = {
        name: p.grad.norm().item() for name, p in model.named_parameters() if p.grad is not None
    }
    whole = sum(norm**2 for norm in before.values()) ** 0.5
    (line,) = [line for line in trainer.state.log_history if "loss" in line]
    assert line["grad_norm"] == pytest.approx(whole, rel=1e-4)
    assert seen["net.0.bias"] == pytest.approx(before["net.0.bias"] * 1e-3 / whole, rel=1e-2)
    # `znorm.optim` reads the gradient and never writes it; the receipt has what was stepped on.
    assert line["znorm/norm_after"] == pytest.approx(56**0.5, rel=1e-4)


def test_the_log_can_be_left_as_it_is(tmp_path: Path) -> None:
    chosen = adamw(znorm.ZNorm(), lr=LR, log_receipt=False)
    given = [
        {"optimizer_cls_and_kwargs": chosen},
        {"transform": znorm.ZNorm(), "log_receipt": False},
    ]
    for mixins, options in zip(((), MIXIN), given, strict=True):
        trainer = hf_trainer(tmp_path, mixins, given=options, max_grad_norm=0, logging_steps=1)
        trainer.train()
        assert not [k for line in trainer.state.log_history for k in line if "znorm" in k]
        assert not [c for c in trainer.callback_handler.callbacks if isinstance(c, LogReceipt)]


@pytest.mark.parametrize(
    "optim", ["adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "rmsprop"]
)
def test_the_mixin_keeps_the_optimizer_that_was_chosen(optim: str, tmp_path: Path) -> None:
    bare = hf_trainer(tmp_path, optim=optim).create_optimizer()
    trainer = by_mixin(tmp_path, znorm.ZNorm(), optim=optim, max_grad_norm=0, logging_steps=8)
    trainer.train()
    inner = trainer.optimizer.optimizer
    assert type(inner) is type(bare)
    assert bare.defaults.keys() <= inner.defaults.keys()
    (line,) = [line for line in trainer.state.log_history if "loss" in line]
    assert line["znorm/norm_after"] == pytest.approx(56**0.5, rel=1e-4)


def test_the_mixin_takes_an_optimizer_of_ones_own(tmp_path: Path) -> None:
    model = Net()
    own = torch.optim.AdamW(model.parameters(), lr=LR, eps=EPS, weight_decay=DECAY)
    given = {"transform": znorm.ZNorm(), "optimizers": (own, None)}
    trainer = hf_trainer(tmp_path, MIXIN, model=model, given=given, max_grad_norm=0)
    trainer.train()
    for one, other in zip(weights(model), plain(znorm.ZNorm()), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_what_has_a_transform_already_is_refused(tmp_path: Path) -> None:
    model = Net()
    own = znorm.optim.AdamW(model.parameters(), transform=znorm.ClipNorm(1.0), model=model)
    given: dict[str, Any] = {"transform": znorm.ZNorm(), "optimizers": (own, None)}
    with pytest.raises(ValueError, match=r"ClipNorm.* already, and .*ZNorm.* on top; leave one"):
        hf_trainer(tmp_path, MIXIN, model=model, given=given)
    given = {
        "transform": znorm.ZNorm(),
        "optimizer_cls_and_kwargs": adamw(znorm.ClipNorm(1.0), lr=LR),
    }
    trainer = hf_trainer(tmp_path, MIXIN, given=given)
    with pytest.raises(ValueError, match=r"ClipNorm.*attached already"):
        trainer.train()


def test_an_optimizer_of_a_search_is_attached_anew(tmp_path: Path) -> None:
    trainer = by_mixin(tmp_path, znorm.ZNorm(), max_grad_norm=0)
    trainer.train()
    first = trainer.attachment
    # What a search does between its trials.
    trainer.model = trainer.model_wrapped = Net()
    trainer.optimizer = trainer.lr_scheduler = None
    trainer.train()
    assert trainer.attachment is not first
    assert trainer.attachment.receipt()["net.0.weight"]["steps"] > 0
    assert len([c for c in trainer.callback_handler.callbacks if isinstance(c, LogReceipt)]) == 1


def test_decay_is_the_trainers(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"weight_decay: .* TrainingArguments\(weight_decay="):
        adamw(znorm.ZNorm(), lr=LR, weight_decay=0.1)
    with pytest.raises(TypeError, match="lr"):
        adamw(znorm.ZNorm())  # type: ignore[call-arg]


def test_an_update_in_backward_is_refused(tmp_path: Path) -> None:
    class Lomo(torch.optim.SGD):
        """As LOMO's: `step` is never called."""

    trainer = by_mixin(tmp_path, znorm.ZNorm())
    trainer.optimizer = Lomo(trainer.model.parameters(), lr=LR)
    with pytest.raises(TypeError, match="optim: Lomo updates in the backward pass"):
        trainer.create_optimizer()


@pytest.mark.parametrize("make", [by_adamw, by_mixin])
def test_an_optimizer_that_is_made_late(make: Any, tmp_path: Path) -> None:
    """Under FSDP the Trainer makes it for the wrapped model, whose parameters are others."""

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = Net()

    trainer = make(tmp_path, znorm.ZNorm(select=[("inside.net.2.*", False)]), max_grad_norm=0)
    wrapped = Wrapped()
    make_late(trainer, wrapped)
    attachment = znorm.attachment_of(trainer.optimizer)
    assert attachment is not None
    names = [row["name"] for row in attachment.describe().rows if row["transformed"]]
    assert names == ["inside.net.0.weight"]


@pytest.mark.parametrize("make", [by_adamw, by_mixin])
def test_flat_parameters_are_refused_by_name(make: Any, tmp_path: Path) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    trainer = make(tmp_path, znorm.ZNorm(), max_grad_norm=0)
    store = tmp_path / "store"
    torch.distributed.init_process_group("gloo", init_method=store.as_uri(), rank=0, world_size=1)
    try:
        wrapped = FullyShardedDataParallel(Net(), device_id=torch.device("cpu"))
        with pytest.raises(ValueError, match=r"FSDP1.* shard it by FSDP2"):
            make_late(trainer, wrapped)
    finally:
        torch.distributed.destroy_process_group()


def test_a_version_that_is_not_tested_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(versions.TESTED, "transformers", ("3.0", "3.5"))
    versions.warn_if_untested.cache_clear()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        adamw(znorm.ZNorm(), lr=LR)
        adamw(znorm.ZNorm(), lr=LR)
    versions.warn_if_untested.cache_clear()
    (text,) = [str(one.message) for one in found]
    assert "outside of the versions that znorm is tested with, 3.0 to 3.5" in text
    assert found[0].filename == __file__
