"""Segmenters case by case: how much each patient gains, who gets worse, and what a rule decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import torch

from znorm.lab.evidence.pairs import Pairs
from znorm.lab.metrics import Cases
from znorm.lab.metrics.segmentation import Rule, dice_of
from znorm.lab.stats import nested_bootstrap

__all__ = ["CaseEvidence", "Gain", "Ruled", "case_evidence"]


@dataclass(frozen=True)
class Gain:
    """The gain of one patient, or of one slice where patients are not known, in F1 (Dice).

    Parameters
    ----------
    name : str
    mean : float
        Over seeds.
    worst : float
        Of all seeds.
    """

    name: str
    mean: float
    worst: float


@dataclass(frozen=True)
class Ruled:
    """The mean Dice over slices by a library's rule for empty masks."""

    rule: str
    baseline: float
    method: float

    @property
    def ahead(self) -> bool:
        return self.method > self.baseline


@dataclass(frozen=True)
class CaseEvidence:
    """A method against the baseline, case by case.

    Parameters
    ----------
    unit : "patient" or "slice"
    pairs : int
        Of runs that kept the same cases.
    mean, low, high : float
        The mean gain and its 95 % interval, by a bootstrap of cases within seeds.
    gains : tuple of Gain
        The largest loss first.
    rules : tuple of Ruled
    """

    unit: str
    pairs: int
    mean: float
    low: float
    high: float
    gains: tuple[Gain, ...]
    rules: tuple[Ruled, ...]

    @property
    def worse(self) -> int:
        """The number of those who are worse on the average."""
        return sum(gain.mean < 0 for gain in self.gains)

    @property
    def rules_disagree(self) -> bool:
        """True where it hangs on the rule who is ahead."""
        return len({ruled.ahead for ruled in self.rules}) > 1


def case_evidence(pairs: Pairs) -> CaseEvidence | None:
    """The evidence of runs that kept their cases; None where none of a pair did.

    Pairs whose runs have other cases than the first one's are left out: they cannot be averaged.

    Raises
    ------
    DataError
        If the cases of a run are there and cannot be read.
    """
    found: list[tuple[Cases, Cases]] = []
    for pair in pairs.made:
        mine, theirs = pair.run.cases(), pair.reference.cases()
        if mine is None or theirs is None or mine.names != theirs.names:
            continue
        if not found or found[0][0].names == mine.names:
            found.append((mine, theirs))
    if not found:
        return None
    unit = "slice" if found[0][0].patients is None else "patient"
    rows = [(_scores(mine) - _scores(theirs)).tolist() for mine, theirs in found]
    interval, (low, high) = nested_bootstrap(rows, draws=2_000)
    gains = sorted(
        (
            Gain(name, sum(column) / len(column), min(column))
            for name, column in zip(_names(found[0][0]), zip(*rows, strict=True), strict=True)
        ),
        key=lambda gain: (gain.mean, gain.name),
    )
    rules = tuple(
        Ruled(
            rule,
            _mean_by([theirs for _, theirs in found], rule),
            _mean_by([m for m, _ in found], rule),
        )
        for rule in get_args(Rule)
    )
    return CaseEvidence(unit, len(found), interval.mean, low, high, tuple(gains), rules)


def _names(cases: Cases) -> tuple[str, ...]:
    return cases.patient_names or cases.case_names


def _scores(cases: Cases) -> torch.Tensor:
    return cases.dice(of_patients=cases.patients is not None)


def _mean_by(several: Sequence[Cases], rule: Rule) -> float:
    """The mean over slices, then over seeds; what a rule leaves out is left out."""
    return float(torch.stack([dice_of(cases.counts, rule).nanmean() for cases in several]).mean())
