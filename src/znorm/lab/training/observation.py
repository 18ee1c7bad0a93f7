"""The receipt of one epoch's gradients, also where a run is stopped within the epoch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

import znorm
from znorm.receipts import FIELDS
from znorm.transforms import Transform

__all__ = ["Observation", "joined"]

Receipt = Mapping[str, Mapping[str, float]]


class Observation:
    """A transform, or none, attached to an optimizer that has none of its own.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
    transform : transform or None
    model : torch.nn.Module
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, transform: Transform | None, model: nn.Module
    ) -> None:
        self._held = optimizer, transform, model
        # Of each layer its weights: two or more dims.
        self._layers = {name for name, weight in model.named_parameters() if weight.dim() > 1}
        self._attachment = self._attach()

    def _attach(self) -> znorm.Attachment:
        optimizer, transform, model = self._held
        return znorm.attach(optimizer, transform, model=model)

    def read(self, earlier: Receipt) -> dict[str, dict[str, float]]:
        """What was seen since the last reading, joined to what was seen before that."""
        seen = {
            name: values
            for name, values in self._attachment.receipt().items()
            if name in self._layers
        }
        self._attachment.detach()
        self._attachment = self._attach()
        return joined(earlier, seen)


def joined(first: Receipt, second: Receipt) -> dict[str, dict[str, float]]:
    """One receipt of the steps of two: means weighted by steps.

    >>> one = dict.fromkeys(FIELDS, 1.0) | {"steps": 1}
    >>> two = dict.fromkeys(FIELDS, 4.0) | {"steps": 2}
    >>> joined({"w": one}, {"w": two})["w"]["mean"], joined({}, {"w": two})["w"]["steps"]
    (3.0, 2)
    """
    both: dict[str, dict[str, float]] = {}
    for name in {**first, **second}:
        found = [receipt[name] for receipt in (first, second) if name in receipt]
        steps = sum(values["steps"] for values in found)
        both[name] = {
            key: sum(values[key] * values["steps"] for values in found) / steps for key in FIELDS
        }
        both[name]["steps"] = steps
    return both
