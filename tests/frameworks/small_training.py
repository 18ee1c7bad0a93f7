"""One small training, by plain torch and by each framework: what their tests compare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import znorm
from kit import net

LR, DECAY, BATCH = 0.05, 0.1, 8
# So large that a clip shows: Adam is blind to a scale otherwise.
EPS = 0.01
IMAGES = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """`kit.net`, with the loss that the Trainer of transformers asks of a model."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"loss": (self.net(images) - images[:, :1]).square().mean()}


def weights(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def adamw(model: nn.Module, transform: Any = None, *, groups: bool = False) -> torch.optim.AdamW:
    """AdamW; with ``groups``, without decay of biases, as the Trainer of transformers has it."""
    parameters: Any = model.parameters()
    if groups:
        named = list(model.named_parameters())
        parameters = [
            {"params": [p for name, p in named if "bias" not in name], "weight_decay": DECAY},
            {"params": [p for name, p in named if "bias" in name], "weight_decay": 0.0},
        ]
    optimizer = torch.optim.AdamW(parameters, lr=LR, eps=EPS, weight_decay=DECAY)
    if transform is not None:
        znorm.attach(optimizer, transform, model=model)
    return optimizer


def plain(
    transform: Any,
    *,
    clip: float | None = None,
    accumulate: int = 1,
    bf16: bool = False,
    rounds_images: bool = False,
    groups: bool = False,
    epochs: int = 1,
) -> list[Tensor]:
    """The weights after a loop of torch's own: backward, clip, step.

    ``rounds_images`` rounds the images of autocast, too, as Fabric does.
    """
    model = Net()
    optimizer = adamw(model, transform, groups=groups)
    for _ in range(epochs):
        for number, images in enumerate(IMAGES.split(BATCH), 1):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = model(images.to(torch.bfloat16) if bf16 and rounds_images else images)[
                    "loss"
                ]
            (loss.float() / accumulate).backward()
            if number % accumulate:
                continue
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
    return weights(model)


def lightning_module(transform: Any = None) -> Any:
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = Net()

        def training_step(self, images: Tensor, number: int) -> Any:
            return self.model(images)["loss"]

        def configure_optimizers(self) -> Any:
            return adamw(self, transform)

    return Module()


def lightning_trainer(folder: Path, *callbacks: Any, **options: Any) -> Any:
    """A Lightning trainer on the CPU that shows nothing."""
    lightning = pytest.importorskip("lightning")
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return lightning.Trainer(
        **{
            "accelerator": "cpu",
            "callbacks": list(callbacks),
            "default_root_dir": folder,
            "enable_model_summary": False,
            "max_epochs": 1,
            **quiet,
            **options,
        }
    )


def batches() -> Any:
    return torch.utils.data.DataLoader(IMAGES, batch_size=BATCH)  # type: ignore[arg-type]


def hf_trainer(
    folder: Path,
    mixins: tuple[type, ...] = (),
    model: Any = None,
    given: Any = None,
    **options: Any,
) -> Any:
    """A Trainer of transformers that takes the images in their order.

    ``given`` are its own arguments beside the model and the data, ``options`` those of
    TrainingArguments.
    """
    transformers = pytest.importorskip("transformers")

    class InOrder(*mixins, transformers.Trainer):  # type: ignore[misc, name-defined]
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    arguments = transformers.TrainingArguments(
        str(folder),
        **{
            "adam_epsilon": EPS,
            "disable_tqdm": True,
            "learning_rate": LR,
            "lr_scheduler_type": "constant",
            "num_train_epochs": 1,
            "per_device_train_batch_size": BATCH,
            "report_to": [],
            "save_strategy": "no",
            "use_cpu": True,
            "weight_decay": DECAY,
            **options,
        },
    )
    data = [{"images": image} for image in IMAGES]
    return InOrder(
        Net() if model is None else model, arguments, train_dataset=data, **(given or {})
    )
