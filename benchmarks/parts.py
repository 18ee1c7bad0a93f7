"""What a fused step of ZNorm + Adam is made of: where the time over torch's fused Adam goes.

    python benchmarks/parts.py [--set resnet50] [--threads 1,2] [--json FILE]

Ratios to ``torch.optim.Adam(fused=True)``, each part alternating with it: the whole step; the
kernel alone, without the optimizer's bookkeeping; measuring alone; the update alone, with
coefficients that are given, so that each gradient is read once. The kernel costs less than its two
parts where a gradient is still in a cache when it is read again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from step import SETS, fused, made

import znorm
from znorm.kernels.cpu import driver, entry
from znorm.kernels.cpu.updates import RULES
from znorm.lab.system import processor


def parts(name: str, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    optimizer = znorm.optim.Adam(made(SETS[name](), dtype, "cpu"), transform=znorm.ZNorm())
    for _ in range(2):
        optimizer.step()
    fused = optimizer.__dict__["_fused_step"]
    (plan,) = (batch.plan for batch in fused.batches)
    adam = RULES["adam"].kind

    def update_alone() -> None:
        plan._table[entry.MEASURES] = 0
        plan.coefficients[2] = 1
        plan.run(adam)
        plan._table[entry.MEASURES] = 1

    return {
        "the whole step": optimizer.step,
        "its kernel": lambda: plan.run(adam, fused.z_score.numbers),
        "measuring alone": lambda: plan.run(driver.MEASURE),
        "the update alone": update_alone,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", default="resnet50", choices=list(SETS))
    parser.add_argument("--threads", default=f"1,{torch.get_num_threads()}")
    parser.add_argument("--pairs", type=int, default=31)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for count in sorted({int(n) for n in options.threads.split(",")}):
        torch.set_num_threads(count)
        for dtype in (torch.float32, torch.bfloat16):
            theirs = fused(made(SETS[options.set](), dtype, "cpu"))
            print(f"\n{options.set}, {str(dtype).removeprefix('torch.')}, {count} threads")
            for name, part in parts(options.set, dtype).items():
                theirs(), part()
                ratios = []
                for _ in range(options.pairs):
                    begun = time.perf_counter()
                    theirs()
                    between = time.perf_counter()
                    part()
                    ratios.append((time.perf_counter() - between) / (between - begun))
                low, middle, high = statistics.quantiles(ratios, n=4)
                print(f"  {middle:6.3f} ({low:.3f} to {high:.3f})  {name}", flush=True)
                rows.append(
                    {
                        "threads": count,
                        "dtype": str(dtype).removeprefix("torch."),
                        "part": name,
                        "ratio": middle,
                        "quartiles": [low, high],
                        "pairs": options.pairs,
                    }
                )
    if options.json:
        result = {"device": processor(), "torch": torch.__version__, "set": options.set}
        options.json.write_text(json.dumps({**result, "rows": rows}, indent=2) + "\n")
        print(options.json)


if __name__ == "__main__":
    main()
