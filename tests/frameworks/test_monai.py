"""MONAI's SupervisedTrainer: the same weights as a plain loop; its autocast is for CUDA alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import znorm
from frameworks.small_training import BATCH, IMAGES, Net, adamw, plain, weights

pytestmark = pytest.mark.slow

pytest.importorskip("ignite")
engines = pytest.importorskip("monai.engines")


@pytest.mark.parametrize("transform", [None, znorm.ZNorm()], ids=["none", "znorm"])
@pytest.mark.parametrize("options", [{}, {"accumulate": 2}], ids=str)
def test_supervised_trainer(options: dict[str, Any], transform: Any) -> None:
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
    trainer.run()
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
