"""The record of each case of a segmentation, and the scores that follow from it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from znorm.lab.metrics.distance import hausdorff_percentiles, hausdorff_rows
from znorm.lab.metrics.masks import Mask, as_masks
from znorm.lab.metrics.scores import MASK_SCORES
from znorm.lab.metrics.segmentation import Counts, count

__all__ = ["Cases"]

_COUNTS = tuple(field.name for field in fields(Counts))
_DISTANCES = ("hausdorff", "hausdorff95", "hausdorff_rows")


# eq=False: comparing tensors gives a tensor, not the truth value that == needs.
@dataclass(frozen=True, eq=False)
class Cases:
    """Counts and distances of each case, from which every score can be computed again.

    Where masks have several labels, a case has an entry for each of them, and a score is the mean
    of those of the labels.

    Parameters
    ----------
    names : tuple of N str
        The name of each case, such as its file.
    patients : tuple of N str, or None
        The patient of each case; None where patients are not known.
    counts : Counts
        Pixels of each case.
    hausdorff, hausdorff95 : Tensor of shape (N,), float64
        Distance of each case as `znorm.lab.metrics.hausdorff` defines it with the rule "diagonal",
        in pixels, or in the units of the spacing where one was given.
    hausdorff_rows : Tensor of shape (N,), float64
        The row variant; not a distance in pixels.
    labels : tuple of N str, or None
        The label that an entry is of; None where masks mark one thing.

    Examples
    --------
    >>> import torch
    >>> truth = torch.zeros(2, 4, 4, dtype=torch.bool)
    >>> truth[0, 1:3, 1:3] = True
    >>> cases = Cases.of(truth, truth, names=["a_1", "a_2"], patients=["a", "a"])
    >>> cases.scores()["f1"], cases.scores()["hausdorff"]
    (1.0, 0.0)
    >>> Cases.from_rows(cases.rows()).scores() == cases.scores()
    True
    """

    names: tuple[str, ...]
    patients: tuple[str, ...] | None
    counts: Counts
    hausdorff: Tensor
    hausdorff95: Tensor
    hausdorff_rows: Tensor
    labels: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def case_names(self) -> tuple[str, ...]:
        """The names, each once."""
        return tuple(dict.fromkeys(self.names))

    @property
    def patient_names(self) -> tuple[str, ...]:
        """The patients, each once; none where they are not known."""
        return tuple(dict.fromkeys(self.patients or ()))

    def by_label(self) -> dict[str, Cases]:
        """The cases of each label by its name; all by an empty name where there are no labels.

        All have the same cases in the same order. A label that neither truth nor prediction has
        anywhere is left out: a score of it would be 1, and says nothing.
        """
        if self.labels is None:
            return {"": self}
        by_label = {
            label: self._take([row for row, of_row in enumerate(self.labels) if of_row == label])
            for label in dict.fromkeys(self.labels)
        }
        there = {
            label: cases
            for label, cases in by_label.items()
            if int(cases.counts.tp.sum() + cases.counts.fp.sum() + cases.counts.fn.sum())
        }
        return there or by_label

    def dice(self, *, of_patients: bool = False) -> Tensor:
        """Dice of each case, in the order of `case_names`, or of each patient's pooled pixels.

        The mean over labels where there are several: float64.

        Parameters
        ----------
        of_patients : bool, default False
        """
        scores = []
        for cases in self.by_label().values():
            counts = cases.counts
            if of_patients:
                counts = counts.by(cases.patients or ())
            scores.append(counts.dice())
        return torch.stack(scores).mean(0)

    def _take(self, rows: Sequence[int]) -> Cases:
        index = torch.tensor(rows, dtype=torch.int64)
        counts = {name: getattr(self.counts, name)[index] for name in _COUNTS}
        distances = {name: getattr(self, name)[index] for name in _DISTANCES}
        return Cases(
            tuple(self.names[row] for row in rows),
            None if self.patients is None else tuple(self.patients[row] for row in rows),
            Counts(**counts),
            **distances,
        )

    @property
    def target_found(self) -> Tensor:
        """True where the truth marks something: bool, in the order of `case_names`."""
        several = [cases.counts for cases in self.by_label().values()]
        return torch.stack([counts.tp + counts.fn > 0 for counts in several]).any(0)

    @property
    def prediction_found(self) -> Tensor:
        """True where the prediction marks something: bool, in the order of `case_names`."""
        several = [cases.counts for cases in self.by_label().values()]
        return torch.stack([counts.tp + counts.fp > 0 for counts in several]).any(0)

    @classmethod
    def of(
        cls,
        prediction: Mask,
        target: Mask,
        names: Sequence[str],
        patients: Sequence[str] | None = None,
        spacing: Sequence[float] | Tensor | None = None,
        labels: Sequence[str] | None = None,
    ) -> Cases:
        """Compare predictions with the truth.

        Parameters
        ----------
        prediction, target : Tensor or array of shape (N, H, W)
            Boolean masks, or of another type that holds only 0 and 1; N is 1 or more. With labels
            also 2 and more: the number of a label, 0 where there is none.
        names : sequence of N str
        patients : sequence of N str, optional
        spacing : two floats, or Tensor of shape (N, 2), optional
            Distance of neighbouring rows and of neighbouring columns, for all or for each case;
            without it distances are in pixels.
        labels : sequence of str, optional
            The names of labels 1, 2, ..., where masks mark several things.

        Raises
        ------
        TypeError, ValueError
            If a mask or the spacing is not such a one; if there is no case, or not one name and
            patient a case.

        Examples
        --------
        >>> import torch
        >>> truth = torch.tensor([[[0, 1, 2, 2]]])
        >>> cases = Cases.of(truth, truth, names=["a"], labels=["liver", "tumour"])
        >>> [row["label"] for row in cases.rows()]
        ['liver', 'tumour']
        """
        if labels is not None:
            return cls._of_labels(prediction, target, names, patients, spacing, labels)
        predicted, true = as_masks("Cases.of", prediction, target)
        if len(predicted) == 0:
            raise ValueError("Cases.of: there must be a case, found masks of none; check the part")
        _check_texts("names", names, len(predicted))
        if patients is not None:
            _check_texts("patients", patients, len(predicted))
        distances = _distances(predicted, true, spacing)
        return cls(
            names=tuple(names),
            patients=None if patients is None else tuple(patients),
            counts=count(predicted, true),
            hausdorff=distances[0],
            hausdorff95=distances[1],
            hausdorff_rows=hausdorff_rows(predicted, true),
        )

    @classmethod
    def _of_labels(
        cls,
        prediction: Mask,
        target: Mask,
        names: Sequence[str],
        patients: Sequence[str] | None,
        spacing: Sequence[float] | Tensor | None,
        labels: Sequence[str],
    ) -> Cases:
        for name, mask in (("prediction", prediction), ("target", target)):
            values = np.unique(np.asarray(mask)).tolist()
            wrong = [value for value in values if value not in range(len(labels) + 1)]
            if wrong:
                raise ValueError(
                    f"Cases.of: {name} must hold 0 to {len(labels)}, as there are {len(labels)} "
                    f"labels, found {wrong[0]}"
                )
        of_each = [
            replace(
                cls.of(prediction == number, target == number, names, patients, spacing),
                labels=(label,) * len(names),
            )
            for number, label in enumerate(labels, 1)
        ]
        return cls.join(of_each)

    @classmethod
    def join(cls, parts: Iterable[Cases]) -> Cases:
        """The cases of several batches as one, in their order.

        Parameters
        ----------
        parts : iterable of Cases

        Raises
        ------
        ValueError
            If there is no part, or if just some of them know their patients.

        Examples
        --------
        >>> import torch
        >>> mask = torch.ones(1, 2, 2)
        >>> Cases.join(Cases.of(mask, mask, names=[name]) for name in "ab").names
        ('a', 'b')
        """
        several = list(parts)
        if not several:
            raise ValueError("Cases.join: there must be a part, found none")
        patients: tuple[str, ...] | None = None
        known = [part.patients for part in several if part.patients is not None]
        if known:
            if len(known) != len(several):
                raise ValueError(
                    f"Cases.join: all parts must have patients or none, found {len(known)} of "
                    f"{len(several)} with patients"
                )
            patients = tuple(patient for part in known for patient in part)

        labels = None
        if all(part.labels is not None for part in several):
            labels = tuple(label for part in several for label in part.labels or ())
        counts = {
            name: torch.cat([getattr(part.counts, name) for part in several]) for name in _COUNTS
        }
        distances = {
            name: torch.cat([getattr(part, name) for part in several]) for name in _DISTANCES
        }
        names = tuple(name for part in several for name in part.names)
        return cls(names, patients, Counts(**counts), **distances, labels=labels)

    def scores(self) -> dict[str, float]:
        """Every score by name; `znorm.lab.metrics.DEFINITIONS` says what each is.

        Returns
        -------
        dict of str to float
            ``f1``, ``tversky``, ``iou`` pooled over all pixels; each with ``_per_slice``, and with
            ``_per_patient`` where patients are known; ``hausdorff``, ``hausdorff95``,
            ``hausdorff_rows`` and ``hausdorff_found``, each left out where no slice qualifies.
        """
        of_labels = [cases._scores() for cases in self.by_label().values()]
        scores: dict[str, float] = {}
        for name in dict.fromkeys(name for one in of_labels for name in one):
            values = [one[name] for one in of_labels if name in one]
            scores[name] = math.fsum(values) / len(values)
        return scores

    def _scores(self) -> dict[str, float]:
        levels = {"": self.counts.pooled(), "_per_slice": self.counts}
        if self.patients is not None:
            levels["_per_patient"] = self.counts.by(self.patients)
        scores: dict[str, float] = {}
        for level, counts in levels.items():
            for name, score in MASK_SCORES.items():
                scores[f"{name}{level}"] = float(score.compute(counts).mean())
        true, predicted = self.target_found, self.prediction_found
        either, both = true | predicted, true & predicted
        for name, values in (
            ("hausdorff", self.hausdorff[either]),
            ("hausdorff_found", self.hausdorff[both]),
            ("hausdorff95", self.hausdorff95[either]),
            ("hausdorff_rows", self.hausdorff_rows[either]),
        ):
            if len(values):
                scores[name] = float(values.mean())
        return scores

    def rows(self) -> list[dict[str, Any]]:
        """A plain dict for each case, for a file: name, patient, counts and distances.

        Examples
        --------
        >>> import torch
        >>> mask = torch.ones(1, 2, 2)
        >>> Cases.of(mask, mask, names=["a"]).rows()[0]["tp"]
        4
        """
        columns: dict[str, Sequence[Any]] = {
            "name": self.names,
            "patient": self.patients or (None,) * len(self),
            **({} if self.labels is None else {"label": self.labels}),
            **{name: getattr(self.counts, name).tolist() for name in _COUNTS},
            **{name: getattr(self, name).tolist() for name in _DISTANCES},
        }
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]]) -> Cases:
        """The cases of a file that holds `rows`; the scores come out the same to the last digit.

        Parameters
        ----------
        rows : iterable of mappings
            As `rows` gives them; numbers may be text and an unknown patient empty, as csv has them.

        Raises
        ------
        ValueError
            If there is no row, if a key is missing or a value is no number, or if just some rows
            name a patient. The row is named.
        """
        several = list(rows)
        if not several:
            raise ValueError("Cases.from_rows: there must be a row, found none")
        for at, row in enumerate(several):
            missing = [key for key in ("name", *_COUNTS, *_DISTANCES) if key not in row]
            if missing:
                raise ValueError(
                    f"Cases.from_rows: row {at} must have {', '.join(missing)}, found "
                    f"{', '.join(map(str, row))}"
                )
        patients = [row.get("patient") or None for row in several]
        known = tuple(str(patient) for patient in patients if patient is not None)
        if known and len(known) != len(several):
            raise ValueError(
                f"Cases.from_rows: all rows must name a patient or none, found {len(known)} of "
                f"{len(several)} (row {patients.index(None)} names none)"
            )

        counts = {
            name: torch.tensor([_number(at, row, name, int) for at, row in enumerate(several)])
            for name in _COUNTS
        }
        distances = {
            name: torch.tensor(
                [_number(at, row, name, float) for at, row in enumerate(several)],
                dtype=torch.float64,
            )
            for name in _DISTANCES
        }
        names = tuple(str(row["name"]) for row in several)
        labels = None
        if "label" in several[0]:
            labels = tuple(str(row.get("label")) for row in several)
            _check_labels(names, labels)
        return cls(names, known or None, Counts(**counts), **distances, labels=labels)


def _check_labels(names: Sequence[str], labels: Sequence[str]) -> None:
    cases = {
        label: [name for name, of_row in zip(names, labels, strict=True) if of_row == label]
        for label in dict.fromkeys(labels)
    }
    first, *others = cases.items()
    for label, named in others:
        if named != first[1]:
            raise ValueError(
                f"Cases.from_rows: label {label!r} must have the cases of label {first[0]!r}, in "
                "the same order"
            )


def _distances(predicted: Tensor, true: Tensor, spacing: Sequence[float] | Tensor | None) -> Tensor:
    """The Hausdorff distance and its 95th percentile of each case: (2, N)."""
    if not isinstance(spacing, Tensor):
        return hausdorff_percentiles(predicted, true, (100, 95), spacing or (1.0, 1.0))
    distances = torch.empty(2, len(predicted), dtype=torch.float64)
    for one in spacing.unique(dim=0):
        rows = (spacing == one).all(1)
        distances[:, rows] = hausdorff_percentiles(
            predicted[rows], true[rows], (100, 95), one.tolist()
        )
    return distances


def _check_texts(name: str, values: Sequence[str], cases: int) -> None:
    if isinstance(values, str) or not all(isinstance(value, str) for value in values):
        raise TypeError(f"Cases.of: {name} must be a sequence of texts, found {values!r}"[:300])
    if len(values) != cases:
        raise ValueError(
            f"Cases.of: {name} must have a text for each of {cases} cases, found {len(values)}"
        )
    if not all(values):
        raise ValueError(f"Cases.of: {name} must not hold an empty text, found one")


def _number(at: int, row: Mapping[str, Any], key: str, kind: type[int] | type[float]) -> float:
    try:
        number = kind(row[key])
        whole = number == float(row[key])  # int() alone would cut 3.7 down to 3
    except (TypeError, ValueError):
        number, whole = -1, False
    # Counts and distances are never negative; neither is written as nan or inf.
    if not (whole and math.isfinite(number) and number >= 0):
        raise ValueError(
            f"Cases.from_rows: {key} of row {at} must be a finite {kind.__name__} of 0 or more, "
            f"found {row[key]!r}"
        )
    return number
