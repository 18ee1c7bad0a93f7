"""The transform that measures and changes nothing; what ``attach(optimizer, None)`` attaches."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from znorm.moments import Affine, Moments
from znorm.selection import Select
from znorm.transforms.base import Transform

__all__ = ["Observe"]


@dataclass(frozen=True)
class Observe(Transform):
    """Every gradient is measured for the receipt, and none is written."""

    select: Select = "all"

    writes = False

    def decide(self, moments: Moments, parameters: Moments | None = None) -> Affine:
        return Affine(torch.zeros_like(moments.mean), torch.ones_like(moments.mean))
