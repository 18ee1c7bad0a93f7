"""What the training loop adds to the bare forward, backward and step of the same net.

Both do the same steps on the same batches: ``bare`` on batches that were made before, with nothing
else done; ``loop`` as ``znorm compare`` trains, with its batches, hashes, losses and progress, but
without the evaluation and the checkpoint at the end of an epoch, which are timed apart. The two
alternate within one process; a ratio is taken for each pair.

    python benchmarks/loop.py [--model resnet20] [--pairs 15] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch
from torch.nn import functional as F

from znorm.lab import models, tasks
from znorm.lab.methods import make_transform
from znorm.lab.optimizers import make_optimizer
from znorm.lab.spec import resolve
from znorm.lab.training.checkpoint import Position
from znorm.lab.training.loop import _Loop
from znorm.lab.training.pipeline import Pipeline
from znorm.lab.training.sampler import batches


class Quiet:
    """A watch that shows nothing."""

    def step(self, epoch: int, step: int, steps: int) -> None: ...
    def epoch(self, entry: dict[str, object]) -> None: ...
    def stop_requested(self) -> bool:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--method", default="znorm")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    choices = {"model": options.model, "method": options.method, "device": "cpu"}
    spec = resolve({**choices, "data.limit": 640})
    dataset = tasks.load(spec.task, spec.data)
    device = torch.device("cpu")

    def fresh() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = models.build(spec.model, channels=3, classes=2, image_size=32)
        model = model.to(memory_format=torch.channels_last)
        transform = make_transform(spec.transform)
        optimizer = make_optimizer(
            spec.optimizer, spec.optimizer_options, 0.0, transform, model, spec.learning_rate
        )
        return model.train(), optimizer

    pipeline = Pipeline(dataset, spec.data.augment, 0, device)
    plan = batches(0, 0, len(dataset.train), spec.batch_size)
    ready = [pipeline.training_batch(0, index) for index in plan]
    bare_model, bare_optimizer = fresh()
    loop_model, loop_optimizer = fresh()

    def bare() -> float:
        begun = time.perf_counter()
        for batch in ready:
            with torch.autocast("cpu", torch.bfloat16, enabled=spec.precision == "bfloat16"):
                loss = F.cross_entropy(bare_model(batch.images), batch.targets)
            bare_optimizer.zero_grad()
            loss.backward()
            bare_optimizer.step()
        return time.perf_counter() - begun

    loop = _Loop(spec, pipeline, loop_model, loop_optimizer, Position(), Quiet(), lambda _: None)

    def ours() -> float:
        loop.position = Position()
        loop.unread = []
        begun = time.perf_counter()
        loop._train_epoch()
        loop._read_losses()
        return time.perf_counter() - begun

    bare()
    ours()
    pairs = []
    for number in range(options.pairs):
        # Which goes first alternates, so that drift of the machine's speed cancels.
        first, second = (bare, ours) if number % 2 else (ours, bare)
        one, two = first(), second()
        pairs.append((two, one) if number % 2 else (one, two))
    ratios = sorted(mine / theirs for mine, theirs in pairs)

    begun = time.perf_counter()
    loop._evaluate("validation")
    loop._evaluate("test")
    evaluation = time.perf_counter() - begun
    quartiles = statistics.quantiles(ratios, n=4)
    result = {
        "model": spec.model,
        "method": spec.method,
        "precision": spec.precision,
        "batch_size": spec.batch_size,
        "steps": len(plan),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "ratios": ratios,
        "median_ratio": statistics.median(ratios),
        "seconds_bare": statistics.median(theirs for _, theirs in pairs),
        "seconds_loop": statistics.median(mine for mine, _ in pairs),
        "seconds_evaluation": evaluation,
    }
    print(
        f"{spec.model}, {spec.method}, {spec.precision}, batch {spec.batch_size}: loop / bare "
        f"{result['median_ratio']:.3f} (quartiles {quartiles[0]:.3f} to {quartiles[2]:.3f}, "
        f"{len(ratios)} pairs of {len(plan)} steps)"
    )
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
