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


@pytest.mark.parametrize("transform", [None, znorm.ZNorm()], ids=["none", "znorm"])
@pytest.mark.parametrize("options", [{}, {"accumulate": 2}], ids=str)
@pytest.mark.parametrize("scaled", [False, True])
def test_supervised_trainer(scaled: bool, options: dict[str, Any], transform: Any) -> None:
    model = Net()
    trainer = engines.SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=torch.utils.data.DataLoader(
            [{"image": row, "label": row} for row in IMAGES],  # type: ignore[arg-type]
            batch_size=BATCH,
        ),
        network=model,
        optimizer=adamw(model, transform),
        loss_function=lambda found, _: found["loss"],
        accumulation_steps=options.get("accumulate", 1),
    )
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
    ignite = pytest.importorskip("ignite.engine")
    model = Net()
    optimizer = adamw(model)
    attachment = znorm.attach(optimizer, znorm.ZNorm(), model=model)
    trainer = engines.SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=2,
        train_data_loader=torch.utils.data.DataLoader(
            [{"image": row, "label": row} for row in IMAGES],  # type: ignore[arg-type]
            batch_size=BATCH,
        ),
        network=model,
        optimizer=optimizer,
        loss_function=lambda found, _: found["loss"],
    )
    seen: list[float] = []

    @trainer.on(ignite.Events.EPOCH_COMPLETED)
    def note(engine: Any) -> None:
        seen.append(attachment.receipt(reset=True)["net.0.weight"]["steps"])

    trainer.run()
    assert seen == [8, 8]
