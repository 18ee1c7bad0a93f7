"""How exact z-scores are, beside the plain formula.

    python benchmarks/exactness.py [--json FILE]

Gradients of 2.4 M entries with a deviation of 1e-3 and means of several times that, held against
the formula on Python floats with sums that round once (``math.fsum``). Shown are the largest error,
as a share of the largest entry, and the share of entries that are the exact result rounded once to
the gradient's dtype. Last come constant gradients, whose exact z-score is 0.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import znorm
from znorm.kernels import registry
from znorm.lab.system import processor

EPS = 1e-10
SHAPE = (512, 512, 3, 3)
DEVIATION = 1e-3
# Half precision has too few digits to hold a deviation beside a larger mean.
RATIOS = {
    torch.float32: (0.0, 1.0, 1e2, 1e4, 1e6),
    torch.bfloat16: (0.0, 1.0, 1e2),
    torch.float16: (0.0, 1.0, 1e2),
}


def exact(gradient: Tensor) -> Tensor:
    values = gradient.double().flatten().tolist()
    first = math.fsum(values) / len(values)
    # The mean in two steps: what the division rounds away is added back by the second.
    mean = first + math.fsum(v - first for v in values) / len(values)
    std = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values))
    return (gradient.double() - mean) / (std + EPS) if std else torch.zeros_like(gradient).double()


def formula(gradient: Tensor) -> Tensor:
    return (gradient - gradient.mean()) / (gradient.std(correction=0) + EPS)


def ours(gradient: Tensor) -> Tensor:
    result = gradient.clone()
    znorm.z_score_([result], eps=EPS)
    return result


def reference(gradient: Tensor) -> Tensor:
    kept = registry.backend_for
    registry.backend_for = lambda kind="cpu": None
    try:
        return ours(gradient)
    finally:
        registry.backend_for = kept


ARMS: dict[str, Callable[[Tensor], Tensor]] = {
    "znorm": ours,
    "znorm, reference kernels": reference,
    "the formula": formula,
}


def compare(dtype: torch.dtype, ratio: float) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    gradient = (DEVIATION * (noise + ratio)).to(dtype)
    expected = exact(gradient)
    rounded = expected.to(dtype)
    rows = []
    for arm, call in ARMS.items():
        found = call(gradient)
        error = (found.double() - expected).abs().max() / expected.abs().max()
        equal = (found == rounded).double().mean()
        rows.append({"arm": arm, "largest_error": float(error), "equal_share": float(equal)})
    return rows


def constants() -> list[dict[str, Any]]:
    """The largest entry of each arm's z-score of a constant gradient; null is NaN."""
    rows = []
    for dtype, value in ((torch.float32, 0.1), (torch.float16, 0.0)):
        gradient = torch.full(SHAPE, value, dtype=dtype)
        for arm, call in ARMS.items():
            largest = float(call(gradient).abs().max())
            rows.append(
                {
                    "dtype": str(dtype).removeprefix("torch."),
                    "value": value,
                    "arm": arm,
                    "largest_entry": None if math.isnan(largest) else largest,
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    tables = []
    for dtype, ratios in RATIOS.items():
        for ratio in ratios:
            rows = compare(dtype, ratio)
            name = str(dtype).removeprefix("torch.")
            tables.append({"dtype": name, "mean_over_deviation": ratio, "rows": rows})
            print(f"\n{name}, mean {ratio:g} deviations")
            for row in rows:
                print(
                    f"  largest error {row['largest_error']:.1e}  "
                    f"equal {row['equal_share']:7.2%}  {row['arm']}",
                    flush=True,
                )
    of_constants = constants()
    print("\nconstant gradients: the largest entry, exactly 0")
    for row in of_constants:
        print(f"  {row['dtype']} {row['value']}: {row['largest_entry']}  {row['arm']}")
    if options.json:
        result = {
            "device": processor(),
            "torch": torch.__version__,
            "date": date.today().isoformat(),
            "shape": SHAPE,
            "tables": tables,
            "constants": of_constants,
        }
        options.json.write_text(json.dumps(result, indent=2) + "\n")
        print(options.json)


if __name__ == "__main__":
    main()
