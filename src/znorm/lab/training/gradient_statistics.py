"""Statistics of one epoch's gradients: its receipt, also where a run is stopped within it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

import znorm
from znorm.receipts import FIELDS
from znorm.transforms import Transform

__all__ = ["GradientStatistics", "joined"]

Receipt = Mapping[str, Mapping[str, float]]


class GradientStatistics:
    """The receipt of a transform, or of none, attached to an optimizer that has none of its own.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
    transform : transform or None
    model : torch.nn.Module
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, transform: Transform | None, model: nn.Module
    ) -> None:
        # Of each layer its weights: two or more dims.
        self._layers = {name for name, weight in model.named_parameters() if weight.dim() > 1}
        self._attachment = znorm.attach(optimizer, transform, model=model)

    def read(self, earlier: Receipt) -> dict[str, dict[str, float]]:
        """The receipt of the steps since the last reading, joined to an earlier one."""
        recent = {
            name: values
            for name, values in self._attachment.receipt(reset=True).items()
            if name in self._layers
        }
        return joined(earlier, recent)


def joined(first: Receipt, second: Receipt) -> dict[str, dict[str, float]]:
    """One receipt of the steps of two: means weighted by steps.

    >>> one = dict.fromkeys(FIELDS, 1.0) | {"steps": 1}
    >>> two = dict.fromkeys(FIELDS, 4.0) | {"steps": 2}
    >>> joined({"w": one}, {"w": two})["w"]["mean"], joined({}, {"w": two})["w"]["steps"]
    (3.0, 2)
    """
    both: dict[str, dict[str, float]] = {}
    for name in {**first, **second}:
        parts = [receipt[name] for receipt in (first, second) if name in receipt]
        steps = sum(values["steps"] for values in parts)
        both[name] = {
            key: sum(values[key] * values["steps"] for values in parts) / steps for key in FIELDS
        }
        both[name]["steps"] = steps
    return both
