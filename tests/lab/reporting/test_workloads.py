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


def test_runs_that_diverged_count_and_methods_that_are_left_out_are_named(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, list(CURVES))
    fell = {"status": "diverged", "diverged_step": 1, "metrics": {}, "seconds": 1.0}
    for seed in (1, 2):
        for model in CURVES:
            for method in ("baseline", "znorm"):
                choices = {"model": model, "method": method, "epochs": 3, "seed": seed}
                end = (
                    fell
                    if method == "znorm"
                    else finished({"test_accuracy": 0.5, "train_loss": 1.0})
                )
                runs.append(recorded(tmp_path, choices, [], end))
    runs.append(recorded(tmp_path, {"method": "center_only", "epochs": 3}, [], fell))
    found = over_workloads(gather(tmp_path, runs))
    assert found is not None
    standings = {one.label: one for one in found.standings}
    # 0.7 once and twice 0 is less than gradient clipping's 0.6 on the one, more than 0.1 on the
    # other, and below the baseline on both.
    assert {label: one.rank for label, one in standings.items()} == {
        "Baseline": 1.5,
        "ZNorm": 2.5,
        "Gradient clipping": 2.0,
    }
    # 0.2 and 0.1, and four times the baseline's 0.5 lost: of six the middle four.
    assert standings["ZNorm"].gain == pytest.approx((-0.5 * 3 + 0.1) / 4)
    assert "ZNorm: 4 of 6 runs diverged or failed, and count as a score of 0." in found.remark
    assert "Left out, since not all workloads have them: Centre only." in found.remark
    # A method of which no run finished is last, and not away.
    alone = [run for run in runs if run.spec.method != "znorm" or run.status == "diverged"]
    last = over_workloads(gather(tmp_path, alone))
    assert last is not None
    assert last.standings[-1].label == "ZNorm"


@pytest.mark.parametrize("models", [["resnet20"], ["resnet56"]])
def test_one_workload_has_no_standings(models: list[str], tmp_path: Path) -> None:
    assert over_workloads(gather(tmp_path, runs_of(tmp_path, models))) is None
