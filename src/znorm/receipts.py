"""Receipts of :meth:`znorm.Attachment.receipt`, and where to write them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

from znorm.engine.receipts import FIELDS

__all__ = ["FIELDS", "by_tag", "total", "write"]


class Writer(Protocol):
    """The part of ``torch.utils.tensorboard.SummaryWriter`` that is used."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any: ...


def by_tag(receipt: Mapping[str, Mapping[str, float]], prefix: str = "znorm") -> dict[str, float]:
    """The numbers of a receipt as loggers take them, each by ``prefix/FIELD/NAME``.

    Parameters
    ----------
    receipt : dict
        Of ``attachment.receipt()``.
    prefix : str, default "znorm"

    Returns
    -------
    dict of str to float

    Examples
    --------
    >>> from znorm import receipts
    >>> receipts.by_tag({"weight": {"norm_before": 0.5, "steps": 2}})
    {'znorm/norm_before/weight': 0.5}
    """
    return {
        f"{prefix}/{field}/{name}": values[field]
        for name, values in receipt.items()
        for field in FIELDS
        if field in values
    }


def total(receipt: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The norms of all tensors of a receipt together, for a log that has no room for each.

    Parameters
    ----------
    receipt : dict
        Of ``attachment.receipt()``.

    Returns
    -------
    dict of str to float
        ``norm_before`` and ``norm_after``, the roots of the sums of squares of the tensors' means;
        ``clipped``, the largest share of steps in which a tensor was clipped. Empty for an empty
        receipt.

    Examples
    --------
    >>> from znorm import receipts
    >>> first = {"norm_before": 3.0, "norm_after": 1.0, "clipped": 1.0, "steps": 2}
    >>> second = {"norm_before": 4.0, "norm_after": 0.0, "clipped": 0.5, "steps": 2}
    >>> receipts.total({"first": first, "second": second})
    {'norm_before': 5.0, 'norm_after': 1.0, 'clipped': 1.0}
    """
    if not receipt:
        return {}
    tensors = receipt.values()
    norms = {
        field: math.hypot(*(values[field] for values in tensors))
        for field in ("norm_before", "norm_after")
    }
    return {**norms, "clipped": max(values["clipped"] for values in tensors)}


def write(
    writer: Writer, receipt: Mapping[str, Mapping[str, float]], step: int, prefix: str = "znorm"
) -> None:
    """Write a receipt as TensorBoard scalars, ``prefix/FIELD/NAME``.

    Parameters
    ----------
    writer : torch.utils.tensorboard.SummaryWriter
        Or anything that has its ``add_scalar``.
    receipt : dict
        Of ``attachment.receipt()``.
    step : int
        Where on the axis of steps it stands.
    prefix : str, default "znorm"

    Examples
    --------
    >>> class Printer:
    ...     def add_scalar(self, tag, value, step):
    ...         print(tag, value, step)
    >>> from znorm import receipts
    >>> receipts.write(Printer(), {"weight": {"norm_before": 0.5, "steps": 2}}, step=2)
    znorm/norm_before/weight 0.5 2
    """
    for tag, value in by_tag(receipt, prefix).items():
        writer.add_scalar(tag, value, step)
