"""Images per second that each task's reading gives, from a cold and from a warm start.

``cold`` opens the set with nothing decoded yet, ``warm`` opens it again; the files may be in the
system's cache both times. ``epoch`` then makes every batch of an epoch: gather, augment,
normalize. Beside them the same epoch as tutorials load it, one image at a time: ``dataloader``, a
Dataset that opens each picture with Pillow (or takes it from memory, for CIFAR-10) and turns it
into a normalized float tensor, as torchvision's do; and ``monai``, LoadImage with its Pillow
reader. Both under torch's DataLoader with two workers.

    ZNORM_DATA_DIR=... python benchmarks/data.py [--images 800] [--json FILE]

Sets that are not there are passed over. Each figure is the median of three, interleaved.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from znorm.lab import data, tasks
from znorm.lab.datasets import lgg_mri, patchcamelyon
from znorm.lab.datasets.dataset import Split
from znorm.lab.spec import resolve
from znorm.lab.training.pipeline import Pipeline
from znorm.lab.training.sampler import batches

BATCH = 64


def pictures(task: str, part: Split) -> list[tuple[Any, Any]]:
    """What a loader of one image at a time opens: a path or an array, and its mask or label."""
    if task == "patchcamelyon":
        folder = patchcamelyon.folder() / "train"
        return [
            (folder / f"{n}.tif", int(t)) for n, t in zip(part.names, part.targets, strict=True)
        ]
    if task == "lgg_mri":
        paths = [
            lgg_mri.folder() / patient / f"{name}.tif"
            for name, patient in zip(part.names, part.patients, strict=True)
        ]
        return [(path, path.with_name(f"{path.stem}_mask.tif")) for path in paths]
    images = part.images.permute(0, 2, 3, 1).numpy()
    targets = part.targets.numpy()
    return [(image, target) for image, target in zip(images, targets, strict=True)]


class OneByOne(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """As torchvision's data sets and transforms do it."""

    def __init__(self, items: list[tuple[Any, Any]], mean: torch.Tensor, std: torch.Tensor) -> None:
        self.items = items
        self.mean, self.std = mean[:, None, None] / 255, std[:, None, None] / 255

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, target = self.items[index]
        picture = Image.open(image) if isinstance(image, Path) else Image.fromarray(image)
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous().float() / 255
        if isinstance(target, Path):
            target = np.array(Image.open(target)) // 255
        return (pixels - self.mean) / self.std, torch.as_tensor(target)


def monai_set(items: list[tuple[Any, Any]], mean: torch.Tensor, std: torch.Tensor) -> Any:
    from monai.data import Dataset as MonaiDataset
    from monai.data import PILReader
    from monai.transforms import Compose, LoadImaged, NormalizeIntensityd

    masks = isinstance(items[0][1], Path)
    keys = ["image", "mask"] if masks else ["image"]
    steps = [
        LoadImaged(keys, reader=PILReader(), ensure_channel_first=True),
        NormalizeIntensityd(["image"], mean.tolist(), std.tolist(), channel_wise=True),
    ]
    names = [{"image": str(image), **({"mask": str(m)} if masks else {})} for image, m in items]
    return MonaiDataset(names, Compose(steps))


def seconds(call: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def drain(loader: Any) -> None:
    for _ in loader:
        pass


def measure(task: str, images: int) -> dict[str, Any]:
    spec = resolve({"task": task})
    real = os.environ.get("ZNORM_DATA_DIR")
    folder = tempfile.mkdtemp()
    try:
        if real is not None:
            # Decoded files go beside links to the data, so that every cold start is one.
            for entry in Path(real).iterdir():
                if not entry.name.startswith("."):
                    (Path(folder) / entry.name).symlink_to(entry)
            os.environ["ZNORM_DATA_DIR"] = folder

        def opened() -> Any:
            getattr(lgg_mri._decoded, "cache_clear", lambda: None)()
            return tasks.load(task, spec.data)

        def cold() -> float:
            shutil.rmtree(Path(folder) / ".decoded", ignore_errors=True)
            return seconds(opened)

        dataset = opened()
        whole = sum(map(len, (dataset.train, dataset.validation, dataset.test)))
        part = dataset.train
        if len(part) > images:
            part = part.take(torch.arange(images))
        short = type(dataset)(part, dataset.validation, dataset.test, dataset.classes)
        pipeline = Pipeline(short, "flip", 0, torch.device("cpu"))
        plan = batches(0, 0, len(part), BATCH)
        mean, std = short.statistics
        items = pictures(task, part)
        peers: dict[str, Any] = {"dataloader": OneByOne(items, mean, std)}
        if isinstance(items[0][0], Path):
            peers["monai"] = monai_set(items, mean, std)
        times: dict[str, list[float]] = {}
        for _ in range(3):
            times.setdefault("cold", []).append(cold())
            times.setdefault("warm", []).append(seconds(opened))
            epoch = seconds(lambda: drain(pipeline.training_batches(0, plan)))
            times.setdefault("epoch", []).append(epoch)
            for name, peer in peers.items():
                loader: Any = DataLoader(peer, BATCH, shuffle=True, num_workers=2)
                times.setdefault(name, []).append(seconds(lambda held=loader: drain(held)))
    finally:
        if real is not None:
            os.environ["ZNORM_DATA_DIR"] = real
        shutil.rmtree(folder)
    return {
        "task": task,
        "images": {"opened": whole, "epoch": len(part)},
        "images_per_second": {
            name: (whole if name in ("cold", "warm") else len(part)) / statistics.median(values)
            for name, values in times.items()
        },
        "seconds": times,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=800, help="of an epoch, at most")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    there = {row["name"] for row in data.listing() if row["state"] not in ("missing", "wrong")}
    results = []
    for task in tasks.TASKS:
        if task not in there:
            print(f"{task}: no files in $ZNORM_DATA_DIR")
            continue
        result = measure(task, options.images)
        results.append(result)
        rates = ", ".join(
            f"{name} {rate:,.0f}" for name, rate in result["images_per_second"].items()
        )
        print(f"{task}: images per second: {rates}", flush=True)
    if options.json:
        content = {
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "machine": platform.machine(),
            "batch_size": BATCH,
            "results": results,
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
