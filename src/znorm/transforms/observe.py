"""The link that measures and changes nothing; what ``attach(optimizer, None)`` attaches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from znorm.moments import Affine, Moments
from znorm.selection import Select

__all__ = ["Observe"]


@dataclass(frozen=True)
class Observe:
    """Every gradient is measured for the receipt, and none is written."""

    select: Select = "all"

    granularity: ClassVar[str] = "tensor"
    joint: ClassVar[bool] = False
    relative: ClassVar[bool] = False
    skips_single_elements: ClassVar[bool] = False

    def decide(self, moments: Moments) -> Affine:
        return Affine(torch.zeros_like(moments.mean), torch.ones_like(moments.mean))
