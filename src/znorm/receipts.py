"""Receipts of :meth:`znorm.Attachment.receipt`, and where to write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from znorm.engine.receipts import FIELDS

__all__ = ["FIELDS", "write"]


class Writer(Protocol):
    """The part of ``torch.utils.tensorboard.SummaryWriter`` that is used."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any: ...


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
    for name, values in receipt.items():
        for field in FIELDS:
            if field in values:
                writer.add_scalar(f"{prefix}/{field}/{name}", values[field], step)
