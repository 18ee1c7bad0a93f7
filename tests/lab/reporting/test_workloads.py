"""Methods over several tables at once, against ranks and shares by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.kit import finished, recorded
from znorm.lab.errors import DataError
from znorm.lab.reporting.page import write_page
from znorm.lab.reporting.tables import gather
from znorm.lab.reporting.workloads import over_workloads
from znorm.lab.runs.folder import Run

# By model and method: test accuracy by epoch.
CURVES = {
    "resnet20": {
        "baseline": [0.3, 0.4, 0.5],
        "znorm": [0.5, 0.6, 0.7],
        "gradient_clipping": [0.1] * 3,
    },
    "resnet56": {
        "baseline": [0.3, 0.6, 0.6],
        "znorm": [0.1, 0.2, 0.7],
        "gradient_clipping": [0.6] * 3,
    },
}


def runs_of(root: Path, models: list[str]) -> list[Run]:
    return [
        recorded(
            root,
            {"model": model, "method": method, "epochs": 3},
            [{"train_loss": 1.0, "test_accuracy": score} for score in scores],
            finished({"test_accuracy": scores[-1], "train_loss": 1.0}),
        )
        for model in models
        for method, scores in CURVES[model].items()
    ]


def test_standings_by_hand(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, list(CURVES))
    found = over_workloads(gather(tmp_path, runs))
    assert found is not None
    assert found.count == 2
    standings = {one.label: one for one in found.standings}
    ranks = {label: one.rank for label, one in standings.items()}
    assert ranks == {"ZNorm": 1.0, "Baseline": 2.25, "Gradient clipping": 2.75}
    # Epochs to the baseline's final score: 3 and 2 for itself, 1 and 3, never and 1.
    assert standings["ZNorm"].shares == (0.5, 0.5, 0.5, 1.0)
    assert standings["Baseline"].shares == (0.0, 0.0, 0.5, 1.0)
    assert "Friedman" in found.remark
    # ZNorm ends 0.2 and 0.1 above the baseline, gradient clipping 0.4 below and level with it.
    gains = {label: one.gain_in_points for label, one in standings.items()}
    assert gains == {"ZNorm": "+15.00", "Baseline": "–", "Gradient clipping": "−20.00"}
    ranks_figure, profiles_figure = found.panels
    assert "they differ from 2.34 on" in ranks_figure
    assert all(f"{label}, {rank:.2f}" in ranks_figure for label, rank in ranks.items())
    assert all(label in profiles_figure for label in ranks)
    page = write_page(tmp_path, runs, {run.spec.data_key: DataError("none") for run in runs})
    assert "Over 2 workloads" in page.read_text()


@pytest.mark.parametrize("models", [["resnet20"], ["resnet56"]])
def test_one_workload_has_no_standings(models: list[str], tmp_path: Path) -> None:
    assert over_workloads(gather(tmp_path, runs_of(tmp_path, models))) is None
