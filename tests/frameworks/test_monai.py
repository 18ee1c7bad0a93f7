"""MONAI's SupervisedTrainer: the same weights as a plain loop.

Its ``amp=True`` asks for autocast and a scaler of CUDA; the calls of its scaler are run with one of
the CPU, without autocast.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import znorm
from frameworks.small_training import BATCH, IMAGES, Net, adamw, plain, weights

pytestmark = pytest.mark.slow

events = pytest.importorskip("ignite.engine").Events
engines = pytest.importorskip("monai.engines")


def trainer_of(model: Net, optimizer: torch.optim.Optimizer, **options: Any) -> Any:
    """A SupervisedTrainer of the images on the CPU, for one epoch unless told."""
    return engines.SupervisedTrainer(
        **{
            "device": torch.device("cpu"),
            "max_epochs": 1,
            "train_data_loader": torch.utils.data.DataLoader(
                [{"image": row, "label": row} for row in IMAGES],  # type: ignore[arg-type]
                batch_size=BATCH,
            ),
            "network": model,
            "optimizer": optimizer,
            "loss_function": lambda found, _: found["loss"],
            **options,
        }
    )


@pytest.mark.parametrize("transform", [None, znorm.ZNorm()], ids=["none", "znorm"])
@pytest.mark.parametrize("options", [{}, {"accumulate": 2}], ids=str)
@pytest.mark.parametrize("scaled", [False, True])
def test_supervised_trainer(scaled: bool, options: dict[str, Any], transform: Any) -> None:
    model = Net()
    accumulate = options.get("accumulate", 1)
    trainer = trainer_of(model, adamw(model, transform), accumulation_steps=accumulate)
    scaler = torch.amp.GradScaler("cpu")
    if scaled:
        trainer.amp_kwargs = {"enabled": False}

        # `run` sets a scaler of its own before this.
        @trainer.on(events.STARTED)
        def _scale(engine: Any) -> None:
            engine.amp, engine.scaler = True, scaler

    trainer.run()
    assert (scaler.state_dict()["_growth_tracker"] > 0) == scaled
    for one, other in zip(weights(model), plain(transform, **options), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_a_receipt_for_each_epoch() -> None:
    model = Net()
    optimizer = adamw(model)
    attachment = znorm.attach(optimizer, znorm.ZNorm(), model=model)
    trainer = trainer_of(model, optimizer, max_epochs=2)
    seen: list[float] = []

    @trainer.on(events.EPOCH_COMPLETED)
    def note(engine: Any) -> None:
        seen.append(attachment.receipt(reset=True)["net.0.weight"]["steps"])

    trainer.run()
    assert seen == [8, 8]
