"""What a training step costs, the net's forward and backward included.

    python benchmarks/train.py [--json FILE]

Three tables, each of arms that alternate within one process, with medians of the ratios of each
round and their quartiles:

- steps of ResNet-20 and ResNet-56 in float32, channels-last, 128 images of 32x32 pixels: with
  torch's fused Adam, with ``znorm.optim.Adam(transform=ZNorm())``, and with the formula in a loop
  over parameters before torch's fused Adam;
- epochs of ResNet-56 in float32 as ``znorm compare`` trains and as tutorials do: a DataLoader that
  gets one image after the other, contiguous images and weights, Adam as it comes, ``loss.item()``
  at each step; the same images in both, ZNorm in neither;
- forward and backward of every model of the lab in float32 and in bfloat16, channels-last: what
  ``--precision auto`` rests on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from loop import Quiet
from step import naive_
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

import znorm
from znorm.lab import models, tasks
from znorm.lab.machine import processor
from znorm.lab.optimizers import make_optimizer
from znorm.lab.spec import resolve
from znorm.lab.training.checkpoint import Position
from znorm.lab.training.device import resolve_precision
from znorm.lab.training.loop import _Loop
from znorm.lab.training.pipeline import Pipeline

CHANNELS_LAST = torch.channels_last


def rounds(arms: Mapping[str, Callable[[], object]], count: int) -> list[dict[str, Any]]:
    """Time the arms in turns; ratios are to the first."""
    for arm in arms.values():
        arm()
    took: dict[str, list[float]] = {name: [] for name in arms}
    order = list(arms)
    for _ in range(count):
        for name in order:
            begun = time.perf_counter()
            arms[name]()
            took[name].append(time.perf_counter() - begun)
        order = order[1:] + order[:1]  # no arm is always the one after the same other
    first = next(iter(arms))
    rows = []
    for name, seconds in took.items():
        ratios = [own / base for own, base in zip(seconds, took[first], strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        rows.append(
            {
                "arm": name,
                "seconds": statistics.median(seconds),
                "ratio": statistics.median(ratios),
                "quartiles": [low, high],
                "rounds": count,
            }
        )
    return rows


def show(title: str, rows: list[dict[str, Any]]) -> None:
    print(f"\n{title}")
    for row in rows:
        low, high = row["quartiles"]
        print(
            f"  {row['ratio']:6.3f} ({low:.3f} to {high:.3f})  "
            f"{1e3 * row['seconds']:8.1f} ms  {row['arm']}",
            flush=True,
        )


def net(name: str, size: int) -> nn.Module:
    torch.manual_seed(0)
    classes = 1 if models.output_of(name) == "mask" else 2
    made = models.build(name, channels=3, classes=classes, image_size=size)
    return made.to(memory_format=CHANNELS_LAST).train()  # type: ignore[call-overload]


def steps(name: str, count: int) -> list[dict[str, Any]]:
    images = torch.randn(128, 3, 32, 32).contiguous(memory_format=CHANNELS_LAST)
    labels = torch.randint(2, (128,))

    def arm(make: Callable[[nn.Module], Callable[[], object]]) -> Callable[[], object]:
        own = net(name, 32)
        update = make(own)

        def step() -> None:
            own.zero_grad()
            F.cross_entropy(own(images), labels).backward()
            update()

        return step

    def ours(own: nn.Module) -> Callable[[], object]:
        return znorm.optim.Adam(own.parameters(), transform=znorm.ZNorm(), model=own).step

    return rounds(
        {
            "torch.optim.Adam(fused=True)": arm(
                lambda own: torch.optim.Adam(own.parameters(), fused=True).step
            ),
            "znorm.optim.Adam(transform=ZNorm())": arm(ours),
            "the formula in a loop, then torch.optim.Adam(fused=True)": arm(
                lambda own: naive_(list(own.parameters()))
            ),
        },
        count,
    )


class _OneByOne(TorchDataset[tuple[Tensor, int]]):
    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images[index].float() / 255
        return (image - 0.5) / 0.25, int(self.labels[index])


def loops(count: int) -> list[dict[str, Any]]:
    spec = resolve(
        {
            "model": "resnet56",
            "method": "baseline",
            "device": "cpu",
            "precision": "float32",
            "batch_size": 128,
            "data.limit": 1280,
            "data.augment": "none",
        }
    )
    dataset = tasks.load(spec.task, spec.data)
    own = net("resnet56", 32)
    optimizer = make_optimizer("adam", spec.optimizer_options, 0.0, None, own, spec.learning_rate)
    pipeline = Pipeline(dataset, "none", 0, torch.device("cpu"))
    loop = _Loop(spec, pipeline, own, optimizer, Position(), Quiet(), lambda _: None)

    def lab() -> None:
        loop.position, loop.unread = Position(), []
        loop._train_epoch()
        loop._read_losses()

    theirs = net("resnet56", 32).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    adam = torch.optim.Adam(theirs.parameters())
    part = dataset.train
    loader = DataLoader(
        _OneByOne(part.images, part.targets), batch_size=128, shuffle=True, num_workers=2
    )

    def tutorial() -> None:
        total = 0.0
        for images, labels in loader:
            adam.zero_grad()
            loss = F.cross_entropy(theirs(images), labels)
            loss.backward()
            adam.step()
            total += loss.item()

    return rounds({"the loop of znorm compare": lab, "a loop as in tutorials": tutorial}, count)


# Batch and image side: about a quarter of a second each, so that the round stays short.
SIZES = {
    "resnet20": (64, 32),
    "resnet56": (64, 32),
    "plain56": (64, 32),
    "mobilenetv2": (16, 64),
    "resnet50_unet": (2, 128),
    "unetplusplus": (2, 128),
    "attention_unet": (4, 128),
}


def precisions(name: str, count: int) -> list[dict[str, Any]]:
    batch, size = SIZES.get(name, (8, 64))
    own = net(name, size)
    images = torch.randn(batch, 3, size, size).contiguous(memory_format=CHANNELS_LAST)

    def arm(bfloat16: bool) -> Callable[[], object]:
        def step() -> None:
            own.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                found = own(images)
            found.float().square().mean().backward()

        return step

    return rounds({"float32": arm(False), "bfloat16": arm(True)}, count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", default="steps,loops,precisions")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result: dict[str, Any] = {
        "device": processor(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    wanted = options.tables.split(",")
    if "steps" in wanted:
        result["steps"] = {}
        for name in ("resnet20", "resnet56"):
            rows = steps(name, options.rounds)
            show(f"a step of {name}, float32, 128 images", rows)
            result["steps"][name] = rows
    if "loops" in wanted:
        result["loops"] = loops(options.rounds)
        show("an epoch of 1,280 images, resnet56, float32, batches of 128", result["loops"])
    if "precisions" in wanted:
        result["precisions"] = {}
        for name in models.MODELS:
            batch, size = SIZES.get(name, (8, 64))
            rows = precisions(name, options.rounds)
            chosen = resolve_precision("auto", "cpu", name)
            show(f"{name}, {batch} images of {size}x{size}; auto is {chosen}", rows)
            result["precisions"][name] = {"auto": chosen, "rows": rows}
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=2) + "\n")
        print(options.json)


if __name__ == "__main__":
    main()
