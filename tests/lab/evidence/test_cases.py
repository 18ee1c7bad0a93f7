"""Segmenters case by case, against tables made by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lab.kit import finished, recorded
from znorm.lab.evidence.cases import case_evidence
from znorm.lab.evidence.pairs import pairs_of
from znorm.lab.metrics import Cases, Counts
from znorm.lab.runs.folder import Run

# Of each slice: tp, fp, fn. The third has no tumour, and the baseline marks it; ZNorm does not.
PATIENTS = ("a", "a", "b", "c")
TRUTH = {
    "baseline": [(8, 2, 2), (4, 0, 4), (0, 5, 0), (5, 5, 5)],
    "znorm": [(6, 2, 4), (4, 0, 4), (0, 0, 0), (5, 5, 5)],
}


def cases_of(rows: list[tuple[int, int, int]], patients: tuple[str, ...] | None) -> Cases:
    tp, fp, fn = torch.tensor(rows).T
    zeros = torch.zeros(len(rows), dtype=torch.float64)
    names = tuple(f"slice_{number}" for number in range(len(rows)))
    return Cases(names, patients, Counts(tp, fp, fn, 100 - tp - fp - fn), zeros, zeros, zeros)


def run_of(
    root: Path, method: str, seed: int = 0, patients: tuple[str, ...] | None = PATIENTS
) -> Run:
    run = recorded(
        root,
        {"task": "phantom", "method": method, "seed": seed},
        [],
        finished({"test_f1": 0.5, "train_loss": 1.0}),
    )
    run.save_cases(cases_of(TRUTH[method], patients))
    return run


def test_patients_by_hand(tmp_path: Path) -> None:
    found = case_evidence(pairs_of([run_of(tmp_path, "znorm")], [run_of(tmp_path, "baseline")]))
    assert found is not None
    assert found.unit == "patient"
    # Patient a: 2 * 10 / (2 * 10 + 2 + 8) against 2 * 12 / (2 * 12 + 2 + 6).
    losses = {gain.name: gain.mean for gain in found.gains}
    assert losses == pytest.approx({"a": 20 / 30 - 24 / 32, "c": 0.0, "b": 1.0})
    assert [gain.name for gain in found.gains] == ["a", "c", "b"]
    assert found.worse == 1
    assert found.mean == pytest.approx((20 / 30 - 24 / 32 + 1) / 3)
    assert found.low <= found.mean <= found.high
    rules = {ruled.rule: (ruled.baseline, ruled.method) for ruled in found.rules}
    first, other = (0.8 + 4 / 6 + 0 + 0.5) / 4, (12 / 18 + 4 / 6 + 1 + 0.5) / 4
    assert rules["one"] == pytest.approx((first, other))
    assert rules["monai"] == pytest.approx(((0.8 + 4 / 6 + 0.5) / 3, (12 / 18 + 4 / 6 + 0.5) / 3))
    assert rules["torchmetrics"] == pytest.approx((first, (12 / 18 + 4 / 6 + 0.5) / 3))
    # By MONAI's rule what the baseline marks on a healthy slice costs nothing, and it is ahead.
    assert found.rules_disagree


def test_slices_where_patients_are_not_known_and_seeds_whose_cases_agree(tmp_path: Path) -> None:
    mine = [run_of(tmp_path, "znorm", seed, None) for seed in (0, 1)]
    theirs = [run_of(tmp_path, "baseline", seed, None) for seed in (0, 1)]
    found = case_evidence(pairs_of(mine, theirs))
    assert found is not None
    assert found.unit == "slice"
    assert len(found.gains) == 4
    assert case_evidence(pairs_of(mine, [])) is None
    (theirs[0].folder / "cases.csv").unlink()
    (theirs[1].folder / "cases.csv").unlink()
    assert case_evidence(pairs_of(mine, theirs)) is None
