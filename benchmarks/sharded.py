"""What one step costs on sharded weights (DTensor), beside torch's fused Adam on the same.

    python benchmarks/sharded.py [--sets resnet50,transformer] [--processes 2] [--json FILE]

Processes on the CPU, a thread each, by gloo; each parameter is sharded along dim 0, as FSDP2 does.
The arms alternate within each process; the ratios are those of the first.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from step import SETS, attach, fused, ours
from timing import rounds, show
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import znorm
from znorm.lab.system import processor

Parameters = list[nn.Parameter]


def naive(parameters: Parameters) -> Callable[[], object]:
    """The formula on DTensors, which gathers each whole gradient."""
    optimizer = torch.optim.Adam(parameters, fused=True)

    @torch.no_grad()
    def step() -> None:
        for parameter in parameters:
            if parameter.grad is not None and parameter.dim() > 1:
                gradient = parameter.grad
                deviation = gradient.std(correction=0) + 1e-10
                parameter.grad = (gradient - gradient.mean()) / deviation
        optimizer.step()

    return step


def clipping(parameters: Parameters) -> Callable[[], object]:
    optimizer = torch.optim.Adam(parameters, fused=True)

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return step


ARMS: dict[str, Callable[[Parameters], Callable[[], object]]] = {
    "torch.optim.Adam(fused=True)": fused,
    "znorm.optim.Adam, ZNorm": ours,
    "attach ZNorm to Adam(fused=True)": attach,
    "clip_grad_norm_, Adam(fused=True)": clipping,
    "the formula on DTensors, Adam(fused=True)": naive,
}


def made(shapes: list[tuple[int, ...]], mesh: Any) -> Parameters:
    parameters = []
    for shape in shapes:
        weight, gradient = (distribute_tensor(torch.randn(shape), mesh, [Shard(0)]) for _ in "wg")
        parameters.append(nn.Parameter(weight))
        parameters[-1].grad = gradient
    return parameters


def process(rank: int, folder: str, options: argparse.Namespace) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=options.processes
    )
    torch.set_num_threads(1)
    mesh = init_device_mesh("cpu", (options.processes,))
    tables = []
    for name in options.sets.split(","):
        shapes = SETS[name]()
        steps = {arm: make(made(shapes, mesh)) for arm, make in ARMS.items()}
        slow = [arm for arm in steps if arm.startswith("the formula")]
        quick = {arm: step for arm, step in steps.items() if arm not in slow}
        first = next(iter(quick))
        rows = rounds(quick, options.rounds)
        rows += rounds({arm: steps[arm] for arm in (first, *slow)}, 5)[1:]
        tables.append({"set": name, "dtype": "float32", "rows": rows})
        if rank == 0:
            show(f"{name}, float32, {options.processes} processes", rows)
        dist.barrier()
    if rank == 0 and options.json:
        result = {
            "device": processor(),
            "torch": torch.__version__,
            "znorm": znorm.__version__,
            "processes": options.processes,
            "tables": tables,
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", default="resnet50,resnet56,transformer")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = partial(process, folder=folder, options=options)
        torch.multiprocessing.spawn(run, nprocs=options.processes)


if __name__ == "__main__":
    main()
