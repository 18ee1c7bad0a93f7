"""Statistics of one epoch's gradients: its receipt, also where a run is stopped within it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

import znorm
from znorm.receipts import FIELDS

__all__ = ["GradientStatistics", "clipped_share", "joined"]

Receipt = Mapping[str, Mapping[str, float]]


class GradientStatistics:
    """The receipt of an optimizer's transform, epoch by epoch.

    Parameters
    ----------
    attachment : znorm.Attachment
    model : torch.nn.Module
        Whose names the attachment has.
    """

    def __init__(self, attachment: znorm.Attachment, model: nn.Module) -> None:
        # Of each layer its weights: two or more dims.
        self._layers = {name for name, weight in model.named_parameters() if weight.dim() > 1}
        self._attachment = attachment

    def read(self, earlier: Receipt) -> dict[str, dict[str, float]]:
        """The receipt of the steps since the last reading, joined to an earlier one."""
        return joined(earlier, self._attachment.receipt(reset=True))

    def of_layers(self, receipt: Receipt) -> dict[str, Mapping[str, float]]:
        """The part of a receipt that is kept with a run: that of each layer's weights."""
        return {name: values for name, values in receipt.items() if name in self._layers}


def clipped_share(receipt: Receipt) -> float:
    """The share of steps in which clips acted, the mean over tensors; 0 of none."""
    shares = [values["clipped"] for values in receipt.values()]
    return sum(shares) / len(shares) if shares else 0.0


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
