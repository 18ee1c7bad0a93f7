"""What one optimizer step costs beside ``torch.optim.Adam(fused=True)``.

    python benchmarks/step.py [--sets resnet50,resnet56,transformer] [--threads 1,2]
                              [--dtypes float32,bfloat16] [--arms ours,attach,...] [--json FILE]

Each arm alternates with torch's fused Adam, step by step, in one process; a ratio is taken of each
pair, and the median is shown with its quartiles. Both sides pay for their own bookkeeping. In
brackets stands the ratio of the bytes that must move if nothing stays in a cache: 32 a parameter
against Adam's 28, in float32, where the transform is part of the update, and 40 where gradients are
written before it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pytorch_optimizer.optimizer.gradient_centralization import centralize_gradient
from torch import nn

import znorm
from znorm.kernels import registry
from znorm.lab.system import processor

Parameters = list[nn.Parameter]


def resnet50() -> list[tuple[int, ...]]:
    """25.6 M parameters in 161 tensors."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
    inputs = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            convolutions = [(width, inputs, 1), (width, width, 3), (4 * width, width, 1)]
            if block == 0:
                convolutions.append((4 * width, inputs, 1))
            for outputs, channels, size in convolutions:
                shapes += [(outputs, channels, size, size), (outputs,), (outputs,)]
            inputs = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


def resnet56() -> list[tuple[int, ...]]:
    """0.85 M parameters: the net of CIFAR's family."""
    shapes: list[tuple[int, ...]] = [(16, 3, 3, 3), (16,), (16,)]
    inputs = 16
    for width in (16, 32, 64):
        for _ in range(9):
            for channels in (inputs, width):
                shapes += [(width, channels, 3, 3), (width,), (width,)]
            inputs = width
    return [*shapes, (10, 64), (10,)]


def transformer() -> list[tuple[int, ...]]:
    """101 M parameters: 24 layers of width 512, and the embeddings of 50,257 words."""
    width = 512
    shapes: list[tuple[int, ...]] = [(50257, width), (1024, width)]
    for _ in range(24):
        for outputs, inputs in ((3, 1), (1, 1), (4, 1), (1, 4)):
            shapes += [(outputs * width, inputs * width), (outputs * width,)]
        shapes += [(width,)] * 4
    return [*shapes, (width,), (width,)]


SETS = {"resnet50": resnet50, "resnet56": resnet56, "transformer": transformer}


def fused(parameters: Parameters) -> Callable[[], object]:
    return torch.optim.Adam(parameters, fused=True).step


def foreach(parameters: Parameters) -> Callable[[], object]:
    return torch.optim.Adam(parameters, foreach=True).step


def plain(parameters: Parameters) -> Callable[[], object]:
    return torch.optim.Adam(parameters, foreach=False, fused=False).step


def ours(parameters: Parameters) -> Callable[[], object]:
    return znorm.optim.Adam(parameters, transform=znorm.ZNorm()).step


def chain(parameters: Parameters) -> Callable[[], object]:
    transform = znorm.chain(znorm.Centralize(), znorm.ClipGlobalNorm(1.0))
    return znorm.optim.Adam(parameters, transform=transform).step


def attach(parameters: Parameters) -> Callable[[], object]:
    optimizer = torch.optim.Adam(parameters, fused=True)
    znorm.attach(optimizer, znorm.ZNorm())
    return optimizer.step


def reference(parameters: Parameters) -> Callable[[], object]:
    step = attach(parameters)

    def without_compiled_kernels() -> None:
        kept = registry.backend_for
        registry.backend_for = lambda kind="cpu": None
        try:
            step()
        finally:
            registry.backend_for = kept

    return without_compiled_kernels


def naive_(parameters: Parameters) -> Callable[[], object]:
    optimizer = torch.optim.Adam(parameters, fused=True)

    def step() -> None:
        for p in parameters:
            if p.grad is not None and p.dim() > 1:
                p.grad = (p.grad - p.grad.mean()) / (p.grad.std() + 1e-10)
        optimizer.step()

    return step


def centralization(parameters: Parameters) -> Callable[[], object]:
    optimizer = torch.optim.Adam(parameters, fused=True)

    def step() -> None:
        for p in parameters:
            if p.grad is not None:
                centralize_gradient(p.grad)
        optimizer.step()

    return step


def clipping(parameters: Parameters) -> Callable[[], object]:
    optimizer = torch.optim.Adam(parameters, fused=True)

    def step() -> None:
        nn.utils.clip_grad_norm_(parameters, 1e9)  # changes nothing, at the same cost
        optimizer.step()

    return step


ARMS: dict[str, tuple[Callable[[Parameters], Callable[[], object]], str]] = {
    "ours": (ours, "znorm.optim.Adam(transform=ZNorm())"),
    "chain": (chain, "the same with chain(Centralize(), ClipGlobalNorm(1.0))"),
    "attach": (attach, "attach(torch.optim.Adam(fused=True), ZNorm())"),
    "reference": (reference, "the same by the reference kernels"),
    "naive": (naive_, "the formula in a loop over parameters, then fused Adam"),
    "centralization": (centralization, "pytorch_optimizer's centralization, then fused Adam"),
    "clipping": (clipping, "clip_grad_norm_, then fused Adam"),
    "foreach": (foreach, "torch.optim.Adam(foreach=True)"),
    "plain": (plain, "torch.optim.Adam, one parameter after the other"),
}


# Of a parameter of float32, that each step must move; fused Adam's are 28.
BYTES = {"ours": 32, "chain": 32, "attach": 40, "clipping": 40}


@contextmanager
def measured(device: str) -> Iterator[list[float]]:
    """Seconds that the block took; on a GPU by its own clock, as in a training.

    There a step is launched while the backward before it runs: the GPU never waits for Python.
    """
    found: list[float] = []
    if device == "cpu":
        begun = time.perf_counter()
        yield found
        found.append(time.perf_counter() - begun)
        return
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(10_000_000)  # some 5 ms
    start.record()
    yield found
    end.record()
    end.synchronize()
    found.append(start.elapsed_time(end) / 1e3)


def made(shapes: list[tuple[int, ...]], dtype: torch.dtype, device: str) -> Parameters:
    generator = torch.Generator().manual_seed(0)
    parameters = []
    for shape in shapes:
        parameter = nn.Parameter(torch.randn(shape, generator=generator).to(device, dtype))
        parameter.grad = torch.randn(shape, generator=generator).to(device, dtype)
        parameters.append(parameter)
    return parameters


def compare(arm: str, shapes: Any, dtype: torch.dtype, device: str, pairs: int) -> dict[str, Any]:
    make, _ = ARMS[arm]
    steps = [fused(made(shapes, dtype, device)), make(made(shapes, dtype, device))]
    for step in steps * 2:
        step()
    ratios, seconds = [], []
    for number in range(pairs):
        # Which goes first alternates, so that drift of the machine's speed cancels.
        order = (0, 1) if number % 2 else (1, 0)
        took = [0.0, 0.0]
        for which in order:
            with measured(device) as found:
                steps[which]()
            took[which] = found[0]
        ratios.append(took[1] / took[0])
        seconds.append(took)
    quartiles = statistics.quantiles(ratios, n=4)
    return {
        "arm": arm,
        "ratio": statistics.median(ratios),
        "quartiles": [quartiles[0], quartiles[2]],
        "pairs": pairs,
        "seconds_fused": statistics.median(took[0] for took in seconds),
        "seconds": statistics.median(took[1] for took in seconds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--threads", default=f"1,{torch.get_num_threads()}")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--pairs", type=int, default=21)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    threads = sorted({int(n) for n in options.threads.split(",")})
    if options.device == "cuda":
        threads = threads[:1]
    tables = []
    for name in options.sets.split(","):
        shapes = SETS[name]()
        for kind in options.dtypes.split(","):
            for count in threads:
                torch.set_num_threads(count)
                rows = []
                print(f"\n{name}, {kind}, {count} threads: ratio to torch.optim.Adam(fused=True)")
                for arm in options.arms.split(","):
                    # The slow ones need no fine ruler.
                    pairs = options.pairs if arm in ("ours", "attach", "clipping") else 9
                    pairs = min(pairs, 9) if name == "transformer" else pairs
                    row = compare(arm, shapes, getattr(torch, kind), options.device, pairs)
                    rows.append(row)
                    low, high = row["quartiles"]
                    least = f"; at least {BYTES[arm] / 28:.3f}" if arm in BYTES else ""
                    print(
                        f"  {row['ratio']:6.3f} ({low:.3f} to {high:.3f}{least})  {ARMS[arm][1]}",
                        flush=True,
                    )
                tables.append({"set": name, "dtype": kind, "threads": count, "rows": rows})
    if options.json:
        result = {
            "device": torch.cuda.get_device_name() if options.device == "cuda" else processor(),
            "torch": torch.__version__,
            "tables": tables,
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=2) + "\n")
        print(options.json)


if __name__ == "__main__":
    main()
