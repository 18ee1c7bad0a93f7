"""Peak memory of a training step: stepping in backward beside the ordinary step.

    python benchmarks/memory.py [--device cuda] [--json FILE]

A net of 25 M parameters, ZNorm and Adam. Each measurement has a process of its own, whose peak is
read after the optimizer's state is there: on a CPU the resident memory's high-water mark, on a GPU
that of torch's allocator. What is compared is the peak above what parameters and state hold.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

import znorm

WIDTH, DEPTH, BATCH, STEPS = 1024, 24, 8, 3


def net(device: str) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH))).to(device)


def resident(field: str) -> int:
    """Bytes, from the kernel's own account of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def measure(way: str, device: str) -> int:
    """The peak in bytes of a few steps above what is held before them."""
    torch.set_num_threads(1)
    model = net(device)

    def make(parameters: object) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=1e-3)  # type: ignore[arg-type]

    optimizer = None
    if way == "in_backward":
        znorm.in_backward(model, make, znorm.ZNorm())
    else:
        optimizer = make(model.parameters())
        znorm.attach(optimizer, znorm.ZNorm(), model=model)
    images = torch.randn(BATCH, WIDTH, device=device)

    def step() -> None:
        model(images).square().mean().backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()

    step()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        for _ in range(STEPS):
            step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = resident("VmRSS")
    for _ in range(STEPS):
        step()
    return resident("VmHWM") - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--way", choices=["ordinary", "in_backward"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(measure(options.way, options.device))
        return
    # Freed tensors go back to the system at once, so that the peak is theirs.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    peaks: dict[str, list[int]] = {"ordinary": [], "in_backward": []}
    for _ in range(options.repeats):
        for way, found in peaks.items():
            command = [sys.executable, __file__, "--way", way, "--device", options.device]
            run = subprocess.run(command, env=environment, capture_output=True, text=True)
            if run.returncode:
                sys.exit(run.stderr)
            found.append(int(run.stdout))
    parameters = sum(p.numel() for p in net("cpu").parameters())
    gradients = 4 * parameters
    medians = {way: statistics.median(found) for way, found in peaks.items()}
    saved = medians["ordinary"] - medians["in_backward"]
    result = {
        "device": torch.cuda.get_device_name() if options.device == "cuda" else platform.machine(),
        "torch": torch.__version__,
        "parameters": parameters,
        "gradient_bytes": gradients,
        "peak_bytes": peaks,
        "saved_share_of_gradients": saved / gradients,
    }
    for way, median in medians.items():
        low, high = min(peaks[way]) / 1e6, max(peaks[way]) / 1e6
        print(f"{way:12s} peak {median / 1e6:7.1f} MB above the start ({low:.1f} to {high:.1f})")
    print(f"saved {saved / gradients:.0%} of the gradients' {gradients / 1e6:.1f} MB")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
        print(options.json)


if __name__ == "__main__":
    main()
