"""What a training step costs, the net's forward and backward included.

    python benchmarks/train.py [--json FILE]

Tables, each of arms that alternate within one process, with medians of the ratios of each
round and their quartiles:

- steps of ResNet-20 and ResNet-56 in float32, channels-last, 128 images of 32x32 pixels: with
  torch's fused Adam, with ``znorm.optim.Adam(transform=ZNorm())``, and with the formula in a loop
  over parameters before torch's fused Adam;
- forward and backward by ``torch.compile`` beside eager ones, for the precision that "auto" takes,
  and the seconds that compiling takes (``--tables compiled``; not among the tables by default);
- forward and backward of every model of the lab in float32 and in bfloat16, channels-last: what
  ``--precision auto`` rests on.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from step import naive_
from timing import rounds, show
from torch import Tensor, nn
from torch.nn import functional as F

import znorm
from znorm.lab import models
from znorm.lab.device import resolve_precision
from znorm.lab.system import processor

CHANNELS_LAST = torch.channels_last


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


def passes(own: Any, images: Tensor, *, bfloat16: bool) -> Callable[[], object]:
    """Forward and backward of a net."""

    def step() -> None:
        own.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            found = own(images)
        found.float().square().mean().backward()

    return step


def images_for(name: str) -> Tensor:
    batch, size = SIZES.get(name, (8, 64))
    return torch.randn(batch, 3, size, size).contiguous(memory_format=CHANNELS_LAST)


def precisions(name: str, count: int) -> list[dict[str, Any]]:
    images = images_for(name)
    own = net(name, images.shape[-1])
    arms = {
        kind: passes(own, images, bfloat16=kind == "bfloat16") for kind in ("float32", "bfloat16")
    }
    return rounds(arms, count)


def compiled(name: str, count: int) -> dict[str, Any]:
    images = images_for(name)
    precision = resolve_precision("auto", "cpu", name)
    bfloat16 = precision == "bfloat16"
    nets = [net(name, images.shape[-1]) for _ in range(2)]
    eager = passes(nets[0], images, bfloat16=bfloat16)
    fast = passes(torch.compile(nets[1], dynamic=False), images, bfloat16=bfloat16)
    begun = time.perf_counter()
    fast()
    seconds = time.perf_counter() - begun
    rows = rounds({"eager": eager, "torch.compile": fast}, count)
    return {"precision": precision, "seconds_to_compile": seconds, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", default="steps,precisions")
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
    if "precisions" in wanted:
        result["precisions"] = {}
        for name in models.MODELS:
            batch, size = SIZES.get(name, (8, 64))
            rows = precisions(name, options.rounds)
            chosen = resolve_precision("auto", "cpu", name)
            show(f"{name}, {batch} images of {size}x{size}; auto is {chosen}", rows)
            result["precisions"][name] = {"auto": chosen, "rows": rows}
    if "compiled" in wanted:
        result["compiled"] = {}
        for name in ("resnet20", "resnet56", "mobilenetv2", "attention_unet"):
            found = compiled(name, options.rounds)
            title = f"{name}, {found['precision']}, {found['seconds_to_compile']:.0f} s to compile"
            show(title, found["rows"])
            result["compiled"][name] = found
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=2) + "\n")
        print(options.json)


if __name__ == "__main__":
    main()
