"""Arms that alternate within one process, and the ratios of their times."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

__all__ = ["rounds", "seconds_of", "show"]


def seconds_of(call: Callable[[], object]) -> float:
    """How long a call takes, with all that it starts on a GPU."""
    begun = time.perf_counter()
    found = call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    # An arm that times itself says so.
    return found if isinstance(found, float) else time.perf_counter() - begun


def rounds(arms: Mapping[str, Callable[[], object]], count: int) -> list[dict[str, Any]]:
    """Time the arms in turns; ratios are to the first."""
    for arm in arms.values():
        arm()
    took: dict[str, list[float]] = {name: [] for name in arms}
    order = list(arms)
    for _ in range(count):
        for name in order:
            took[name].append(seconds_of(arms[name]))
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
    """Print a table: ratio, its quartiles, milliseconds."""
    print(f"\n{title}")
    for row in rows:
        low, high = row["quartiles"]
        print(
            f"  {row['ratio']:6.3f} ({low:.3f} to {high:.3f})  "
            f"{1e3 * row['seconds']:8.1f} ms  {row['arm']}",
            flush=True,
        )
