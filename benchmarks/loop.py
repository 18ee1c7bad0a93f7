"""What the training loop adds to the bare steps of the same net, and how others' loops compare.

    python benchmarks/loop.py [--model resnet20] [--arms bare,tutorial,lightning] [--rounds 15]
                              [--device cpu] [--no-cuda-graph] [--side-by-side 2,4,8] [--evaluate]
                              [--json FILE]

An epoch of training, the checkpoint at its end left out and without ``--evaluate`` the evaluation
too, in arms that alternate within one process; ratios are to the first:

- as ``znorm compare`` trains, with its batches, checksums, losses and progress;
- with ``--side-by-side``, so many such runs that take turns, as ``--jobs`` has them on a GPU;
- ``bare``: forward, backward and step on batches that were made before, nothing else;
- ``tutorial``: a DataLoader that gets one image after the other, contiguous float32 images and
  weights, torch's Adam as it comes, ``loss.item()`` at each step;
- ``lightning``: the same DataLoader, net and Adam in Lightning's Trainer (``pip install
  lightning``), which is timed from the start to the end of its epoch, at the loop's precision.

On a GPU it also says which share of the time no kernel runs.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
import warnings
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import torch
from timing import rounds, seconds_of, show
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from znorm.lab import models, tasks
from znorm.lab.datasets import Dataset, Split
from znorm.lab.spec import RunSpec, resolve
from znorm.lab.system import processor
from znorm.lab.training.checkpoint import Position
from znorm.lab.training.loop import _Loop
from znorm.lab.training.pipeline import Pipeline
from znorm.lab.training.sampler import batches
from znorm.lab.training.setup import set_up
from znorm.lab.training.surroundings import Surroundings

Epoch = Callable[[], object]


class Quiet:
    """A watch that shows nothing."""

    def step(self, epoch: int, step: int, steps: int) -> None: ...
    def epoch(self, entry: dict[str, object]) -> None: ...
    def stop_requested(self) -> bool:
        return False


class OneByOne(TorchDataset[tuple[Tensor, int]]):
    """Images as tutorials get them."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images[index].float() / 255
        return (image - 0.5) / 0.25, int(self.labels[index])


def net(spec: RunSpec, data: Dataset) -> nn.Module:
    torch.manual_seed(0)
    model = models.build(
        spec.model,
        channels=3,
        classes=data.outputs,
        image_size=data.image_size,
        **spec.model_options,
    )
    return model.to(spec.device).train()


def lab(spec: RunSpec, data: Dataset, count: int = 1, *, evaluates: bool = False) -> Epoch:
    """An epoch of so many runs side by side."""
    device, copies = torch.device(spec.device), dict[int, Split]()
    runs: list[tuple[Surroundings, _Loop]] = []
    for seed in range(count):
        stream = torch.cuda.Stream() if count > 1 and device.type == "cuda" else None
        surroundings = Surroundings(device, stream, tries_algorithms=not spec.deterministic)
        with surroundings:
            torch.manual_seed(seed)
            model, optimizer = set_up(spec, data)
            pipeline = Pipeline(data, spec.data.augment, seed, device, copies=copies)
            loop = _Loop(spec, pipeline, model, optimizer, Position(), Quiet(), lambda _: None)
        runs.append((surroundings, loop))

    def steps(loop: _Loop) -> Generator[None, None, None]:
        loop.position, loop.unread = Position(), []
        yield from loop._train_epoch()
        read = [loop.evaluator.queue(one) for one in (data.validation, data.test) if evaluates]
        yield
        loop._read_losses()
        for scores in read:
            scores()

    def epoch() -> None:
        left = [(surroundings, steps(loop)) for surroundings, loop in runs]
        while left:
            going = []
            for surroundings, one in left:
                with surroundings:
                    if next(one, "over") != "over":
                        going.append((surroundings, one))
            left = going

    return epoch


def bare(spec: RunSpec, data: Dataset) -> Epoch:
    torch.manual_seed(0)
    model, optimizer = set_up(spec, data)
    model.train()
    pipeline = Pipeline(data, spec.data.augment, 0, torch.device(spec.device))
    plan = batches(0, 0, len(data.train), spec.batch_size)
    ready = [pipeline.training_batch(0, index) for index in plan]

    def epoch() -> None:
        for batch in ready:
            with torch.autocast(spec.device, torch.bfloat16, spec.precision == "bfloat16"):
                loss = F.cross_entropy(model(batch.images), batch.targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return epoch


def loader_of(spec: RunSpec, data: Dataset, workers: int) -> DataLoader[tuple[Tensor, int]]:
    return DataLoader(
        OneByOne(data.train.images, data.train.targets),
        batch_size=spec.batch_size,
        shuffle=True,
        num_workers=workers,
        pin_memory=spec.device == "cuda",
    )


def tutorial(spec: RunSpec, data: Dataset, workers: int) -> Epoch:
    model = net(spec, data)
    adam = torch.optim.Adam(model.parameters(), spec.learning_rate)
    loader = loader_of(spec, data, workers)

    def epoch() -> None:
        total = 0.0
        for images, labels in loader:
            adam.zero_grad()
            loss = F.cross_entropy(model(images.to(spec.device)), labels.to(spec.device))
            loss.backward()
            adam.step()
            total += loss.item()

    return epoch


def lightning(spec: RunSpec, data: Dataset, workers: int) -> Epoch:
    from lightning import pytorch as pl

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")

    class Net(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = net(spec, data)

        def training_step(self, batch: Any, number: int) -> Tensor:
            return F.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), spec.learning_rate)

    class Clock(pl.Callback):  # type: ignore[misc]
        seconds = 0.0

        def on_train_epoch_start(self, *_: Any) -> None:
            self.begun = time.perf_counter()

        def on_train_epoch_end(self, *_: Any) -> None:
            if spec.device == "cuda":
                torch.cuda.synchronize()
            self.seconds = time.perf_counter() - self.begun

    module, loader, clock = Net(), loader_of(spec, data, workers), Clock()

    def epoch() -> float:
        trainer = pl.Trainer(
            max_epochs=1,
            accelerator="gpu" if spec.device == "cuda" else "cpu",
            devices=1,
            precision="bf16-mixed" if spec.precision == "bfloat16" else "32-true",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[clock],
        )
        trainer.fit(module, loader)
        return clock.seconds

    return epoch


def idle_share(epoch: Epoch, seconds: float) -> float:
    """The share of an epoch's time in which no kernel runs on the GPU, on any stream."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as found:
        seconds_of(epoch)
    on_gpu = torch.autograd.DeviceType.CUDA
    times = [event.time_range for event in found.events() if event.device_type == on_gpu]
    busy = covered([(time.start, time.end) for time in times]) / 1e6
    return max(0.0, 1 - busy / seconds)


def covered(stretches: list[tuple[float, float]]) -> float:
    """The length of what stretches cover together; streams are at work side by side."""
    total, reached = 0.0, -math.inf
    for start, end in sorted(stretches):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--method", default="znorm")
    parser.add_argument("--arms", default="bare")
    parser.add_argument("--images", type=int, default=640)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--augment")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cuda-graph", action=argparse.BooleanOptionalAction)
    parser.add_argument("--side-by-side", default="", help="such as 2,4,8")
    parser.add_argument("--evaluate", action="store_true", help="validation and test images, too")
    parser.add_argument("--workers", type=int, default=2, help="of the DataLoader")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    # As the lab does on a GPU, for all arms.
    torch.backends.cudnn.benchmark = options.device == "cuda"
    spec = resolve(
        {
            "model": options.model,
            "method": options.method,
            "device": options.device,
            "precision": options.precision,
            "batch_size": options.batch_size,
            "cuda_graph": options.cuda_graph,
            "data.limit": options.images,
            "data.augment": options.augment,
        }
    )
    data = tasks.load(spec.task, spec.data)
    makers: dict[str, Callable[[], Epoch]] = {
        "bare": lambda: bare(spec, data),
        "tutorial": lambda: tutorial(spec, data, options.workers),
        "lightning": lambda: lightning(spec, data, options.workers),
    }
    arms = {"znorm compare": lab(spec, data, evaluates=options.evaluate)}
    trained = dict.fromkeys(arms, 1)
    for count in map(int, filter(None, options.side_by_side.split(","))):
        name = f"{count} side by side"
        arms[name], trained[name] = lab(spec, data, count, evaluates=options.evaluate), count
    arms.update({name: makers[name]() for name in options.arms.split(",") if name})
    rows = rounds(arms, options.rounds)
    for row in rows:
        images = len(data.train) * trained.get(row["arm"], 1)
        row["images_per_second"] = images / row["seconds"]
        if spec.device == "cuda":
            row["idle_share"] = idle_share(arms[row["arm"]], row["seconds"])
    on = torch.cuda.get_device_name() if spec.device == "cuda" else processor()
    show(
        f"{spec.model}, {spec.method}, {spec.precision}, {len(data.train)} images in batches of "
        f"{spec.batch_size}, on {on}",
        rows,
    )
    for row in rows:
        idle = f", {row['idle_share']:.0%} of the time idle" if "idle_share" in row else ""
        print(f"  {row['images_per_second']:10,.0f} images/s{idle}  {row['arm']}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        result = {
            "device": on,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "model": spec.model,
            "method": spec.method,
            "precision": spec.precision,
            "batch_size": spec.batch_size,
            "augment": spec.data.augment,
            "cuda_graph": bool(spec.cuda_graph),
            "images": len(data.train),
            "evaluated": len(data.validation) + len(data.test) if options.evaluate else 0,
            "rows": rows,
        }
        options.json.write_text(json.dumps(result, indent=2) + "\n")
        print(options.json)


if __name__ == "__main__":
    main()
