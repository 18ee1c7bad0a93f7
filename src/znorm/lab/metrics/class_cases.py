"""The record of each case of a classification."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

__all__ = ["ClassCases"]

_COLUMNS = ("name", "patient", "truth", "predicted", "share")


@dataclass(frozen=True)
class ClassCases:
    """The true and the predicted class of each case, and what the true one was given.

    Parameters
    ----------
    names : tuple of N str
    patients : tuple of N str, or None
        None where they are not known.
    truth, predicted : tuple of N str
        Classes by name.
    shares : tuple of N float
        The probability that the net gave to the true class.

    Examples
    --------
    >>> import torch
    >>> logits = torch.tensor([[2.0, 0.0], [1.0, 1.5]])
    >>> cases = ClassCases.of(logits, torch.tensor([0, 0]), ("cat", "dog"), ("a", "b"))
    >>> cases.predicted, round(cases.shares[0], 3)
    (('cat', 'dog'), 0.881)
    """

    names: tuple[str, ...]
    patients: tuple[str, ...] | None
    truth: tuple[str, ...]
    predicted: tuple[str, ...]
    shares: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def of(
        cls,
        logits: Tensor,
        labels: Tensor,
        classes: Sequence[str],
        names: Sequence[str],
        patients: Sequence[str] | None = None,
    ) -> ClassCases:
        """The cases of a net's outputs.

        Parameters
        ----------
        logits : Tensor of shape (N, K)
        labels : Tensor of shape (N,)
        classes : sequence of K str
        names : sequence of N str
        patients : sequence of N str, optional
        """
        shares = logits.double().softmax(1).gather(1, labels[:, None].to(logits.device))[:, 0]
        return cls(
            tuple(names),
            tuple(patients) if patients else None,
            tuple(classes[number] for number in labels.tolist()),
            tuple(classes[number] for number in logits.argmax(1).tolist()),
            tuple(shares.tolist()),
        )

    @property
    def accuracy(self) -> float:
        """The share of cases that are right."""
        right = (true == one for true, one in zip(self.truth, self.predicted, strict=True))
        return sum(right) / len(self)

    def rows(self) -> list[dict[str, Any]]:
        """A plain dict for each case, for a file."""
        patients = self.patients or (None,) * len(self)
        columns = (self.names, patients, self.truth, self.predicted, self.shares)
        return [dict(zip(_COLUMNS, row, strict=True)) for row in zip(*columns, strict=True)]

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]]) -> ClassCases:
        """The cases of a file that holds `rows`.

        Parameters
        ----------
        rows : iterable of mappings
            As `rows` gives them; numbers may be text, as csv has them.

        Raises
        ------
        ValueError
            If there is no row, a column is missing, or a share is no probability.
        """
        several = list(rows)
        if not several:
            raise ValueError("ClassCases.from_rows: there must be a row, found none")
        for at, row in enumerate(several):
            missing = [column for column in _COLUMNS if column not in row]
            if missing:
                raise ValueError(f"ClassCases.from_rows: row {at} must have {', '.join(missing)}")
        patients = [row["patient"] or None for row in several]
        shares = [_share(at, row["share"]) for at, row in enumerate(several)]
        known = tuple(str(one) for one in patients if one is not None)
        if known and len(known) < len(several):
            raise ValueError("ClassCases.from_rows: all rows must name a patient or none")
        names, truth, predicted = (
            tuple(str(row[column]) for row in several) for column in ("name", "truth", "predicted")
        )
        return cls(names, known or None, truth, predicted, tuple(shares))


def _share(at: int, value: Any) -> float:
    try:
        share = float(value)
    except (TypeError, ValueError):
        share = math.nan
    if not 0 <= share <= 1:
        raise ValueError(
            f"ClassCases.from_rows: share of row {at} must be a probability, found {value!r}"
        )
    return share
