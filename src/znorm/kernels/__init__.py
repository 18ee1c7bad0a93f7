"""Kernels: what reads and writes gradients and weights.

`base` is the contract of compiled ones, `registry` the choice between them, `reference` those in
torch operations, which run anywhere.
"""

from __future__ import annotations

from znorm.kernels import reference
from znorm.kernels.registry import name_on, why_not

__all__ = ["name_on", "reference", "why_not"]
