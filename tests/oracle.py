"""What tests hold the library against: each formula written out on Python floats.

Sums are `math.fsum`, which rounds once, so that these are exact to the last digit of float64
whatever the mean is beside the deviation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def moments(values: Sequence[float]) -> tuple[float, float]:
    """Mean and population standard deviation."""
    n = len(values)
    # The mean in two steps: what the division rounds away is added back by the second.
    first = math.fsum(values) / n
    mean = first + math.fsum(v - first for v in values) / n
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / n)


def z_score(values: Sequence[float], eps: float = 1e-10, correction: int = 0) -> list[float]:
    n = len(values)
    mean, std = moments(values)
    std *= math.sqrt(n / (n - correction))
    if std == 0:
        return [0.0] * n
    return [(v - mean) / (std + eps) for v in values]


def scale_only(values: Sequence[float], eps: float = 1e-10) -> list[float]:
    _, std = moments(values)
    return [v / (std + eps) if std else 0.0 for v in values]


def center(values: Sequence[float]) -> list[float]:
    mean, _ = moments(values)
    return [v - mean for v in values]


def unit(values: Sequence[float], eps: float = 1e-10) -> list[float]:
    norm = math.sqrt(math.fsum(v * v for v in values))
    return [v / (norm + eps) for v in values]


def clip(values: Sequence[float], threshold: float) -> list[float]:
    norm = math.sqrt(math.fsum(v * v for v in values))
    return [v * min(1.0, threshold / norm) if norm else v for v in values]


def clamp(values: Sequence[float], threshold: float) -> list[float]:
    return [max(-threshold, min(threshold, v)) for v in values]


def whole(formula: Callable[[Sequence[float]], list[float]], gradient: Tensor) -> Tensor:
    """The formula on all elements together, in float64."""
    values = gradient.double().flatten().tolist()
    return torch.tensor(formula(values), dtype=torch.float64).reshape(gradient.shape)


def by_channel(
    formula: Callable[[Sequence[float]], list[float]], gradient: Tensor, axis: int = 0
) -> Tensor:
    """The formula on each slice along ``axis``."""
    slices = [whole(formula, part) for part in gradient.unbind(axis)]
    return torch.stack(slices, axis)
