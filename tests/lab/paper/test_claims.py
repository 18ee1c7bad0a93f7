"""Claims of the paper's text and published numbers, against runs made by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from lab.kit import finished, recorded
from znorm.lab.paper.claims import Claim, claims
from znorm.lab.paper.tables import _held_against
from znorm.lab.reporting.tables import gather


def claimed(
    root: Path, scores: Mapping[str, Sequence[Sequence[float]]], *, away: bool = False
) -> list[Claim]:
    """The claims of runs with these test accuracies by method, seed and epoch."""
    runs = [
        recorded(
            root,
            {"method": method, "seed": seed, "epochs": len(row)},
            [{"train_loss": 1.0, "test_accuracy": score} for score in row],
            finished({"test_accuracy": row[-1], "train_loss": 1.0}),
        )
        for method, rows in scores.items()
        for seed, row in enumerate(rows)
    ]
    tables = gather(root, runs)
    return claims(tables, {table.spec.configuration for table in tables} if away else ())


BASELINE = [[0.5, 0.60], [0.5, 0.61], [0.5, 0.62]]
AHEAD = [[0.65, 0.70], [0.65, 0.72], [0.66, 0.71]]
BEHIND = [[0.30, 0.40], [0.31, 0.42], [0.32, 0.415]]


@pytest.mark.parametrize(
    ("mine", "other", "states"),
    [
        (AHEAD, BEHIND, ["supported", "supported", "supported"]),
        (BEHIND, AHEAD, ["contradicted", "contradicted", "contradicted"]),
        (BASELINE, BASELINE, ["not decided", "not decided", "not decided"]),
        (AHEAD, AHEAD, ["supported", "not decided", "supported"]),
    ],
)
def test_claims_are_supported_contradicted_or_not_decided(
    mine: list[list[float]], other: list[list[float]], states: list[str], tmp_path: Path
) -> None:
    scores = {"baseline": BASELINE, "znorm": mine, "gradient_clipping": other}
    assert [claim.state for claim in claimed(tmp_path, scores)] == states


def test_other_settings_than_the_papers_decide_nothing_and_are_shown(tmp_path: Path) -> None:
    found = claimed(tmp_path, {"baseline": BASELINE, "znorm": BEHIND}, away=True)
    assert {claim.state for claim in found} == {"not decided", "not tested here"}
    assert "not at the paper's settings: −19.83 ± " in found[0].evidence[0]


def test_what_no_run_tests_is_said(tmp_path: Path) -> None:
    assert {claim.state for claim in claimed(tmp_path, {"baseline": BASELINE})} == {
        "not tested here"
    }
    # Two runs that never arrive contradict nothing yet.
    few = claimed(tmp_path / "few", {"baseline": BASELINE[:2], "znorm": BEHIND[:2]})
    assert few[2].state == "not decided"


@pytest.mark.parametrize(
    ("published", "verdict"),
    # 61 % with a deviation of 1: 4.303 * sqrt(4 / 3) points about it.
    [(0.61, "consistent"), (0.655, "consistent"), (0.662, "outside"), (0.55, "outside")],
)
def test_a_published_number_against_where_one_run_more_would_lie(
    published: float, verdict: str
) -> None:
    assert _held_against(published, [0.60, 0.61, 0.62]) == verdict
    assert _held_against(published, [0.60, 0.61]) == "too few seeds"
