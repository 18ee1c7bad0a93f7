"""What tables hold: epochs to the baseline's final score, columns; against tables made by hand."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import torch

from lab.kit import finished, recorded
from znorm.lab.metrics import classification_scores
from znorm.lab.reporting.tables import gather, on_terminal
from znorm.lab.runs.folder import Run
from znorm.lab.runs.survey import find

# Test accuracy by epoch; the last one is the run's.
SCORES = {
    ("baseline", 0): [0.5, 0.7, 0.6],
    ("baseline", 1): [0.1, 0.2, 0.3],
    ("znorm", 0): [0.6, 0.9, 0.2],  # equal counts
    ("znorm", 1): [0.0, 0.1, 0.4],
    ("gradient_clipping", 0): [0.1, 0.1, 0.1],  # never
    ("gradient_clipping", 1): [0.9, 0.1, 0.1],
    ("weight_decay_1e-3", 2): [0.9, 0.9, 0.9],  # no baseline of its seed
}


def made(root: Path) -> list[Run]:
    runs = []
    for (method, seed), scores in SCORES.items():
        choices = {"method": method, "seed": seed, "epochs": 3}
        epochs = [{"train_loss": 1.0, "test_accuracy": score} for score in scores]
        runs.append(recorded(root, choices, epochs, finished(epochs[-1])))
    return runs


def test_the_first_epoch_that_scores_what_the_baseline_of_its_seed_ends_with(
    tmp_path: Path,
) -> None:
    (table,) = gather(tmp_path, made(tmp_path))
    cells = {row.method: row.epochs_to_baseline for row in table.rows}
    texts = {method: [value.text for value in cell.values] for method, cell in cells.items()}
    assert texts == {
        "baseline": ["2", "3"],
        "znorm": ["1", "3"],
        "gradient_clipping": ["not reached", "1"],
        "weight_decay_1e-3": [],
    }
    means = {method: cell.mean for method, cell in cells.items()}
    assert means == {
        # The median: the first epoch by which half of the runs were there.
        "baseline": "2",
        "znorm": "1",
        "gradient_clipping": "1 (reached by 1 of 2)",
        "weight_decay_1e-3": "–",
    }


def test_a_run_that_diverged_has_not_reached_it_and_half_a_history_says_nothing(
    tmp_path: Path,
) -> None:
    runs = made(tmp_path)
    broken = next(run for run in runs if (run.spec.method, run.spec.seed) == ("znorm", 1))
    broken.finish({"status": "diverged", "metrics": {}, "diverged_step": 3})
    short = next(run for run in runs if run.spec.method == "gradient_clipping")
    (short.folder / "events.jsonl").unlink()
    (table,) = gather(tmp_path, runs)
    cells = {row.method: row.epochs_to_baseline for row in table.rows}
    assert cells["znorm"].mean == "1 (reached by 1 of 2)"
    assert [value.text for value in cells["znorm"].values] == ["1", "not reached"]
    assert (cells["gradient_clipping"].mean, cells["gradient_clipping"].values) == ("–", ())


def test_only_runs_that_started_alike_are_paired(tmp_path: Path) -> None:
    runs = made(tmp_path)
    for run in runs:
        other = run.spec.method == "znorm" and run.spec.seed == 1
        hashes = {"initial_weights": "a", "batches": "other" if other else "b"}
        run.finish({**(run.result or {}), "hashes": hashes})
    (table,) = gather(tmp_path, runs)
    rows = {row.method: row for row in table.rows}
    difference = rows["znorm"].difference
    assert difference is not None
    assert difference.mean == "−40.00"  # of seed 0 alone: 0.2 less 0.6
    (trouble,) = rows["znorm"].troubles
    assert (trouble.seed, trouble.text) == (
        1,
        "other batches (their order, or the augmentation) than the baseline's",
    )
    # Of seed 0 alone, too: the other would have reached it in epoch 3.
    reached = rows["znorm"].epochs_to_baseline
    assert (reached.mean, [(value.seed, value.text) for value in reached.values]) == (
        "1",
        [(0, "1")],
    )


def test_a_run_that_diverged_on_other_images_says_nothing_of_the_baseline(tmp_path: Path) -> None:
    runs = made(tmp_path)
    for run in runs:
        other = run.spec.method == "znorm" and run.spec.seed == 1
        result = {**(run.result or {}), "hashes": {"data": "other" if other else "a"}}
        if other:
            result |= {"status": "diverged", "diverged_step": 3}
        run.finish(result)
    (table,) = gather(tmp_path, runs)
    rows = {row.method: row for row in table.rows}
    assert rows["znorm"].epochs_to_baseline.mean == "1"


def test_runs_that_never_arrive_keep_a_median_from_being_given(tmp_path: Path) -> None:
    runs = made(tmp_path)
    runs += [
        recorded(
            tmp_path,
            {"method": method, "seed": seed, "epochs": 3},
            [{"train_loss": 1.0, "test_accuracy": score}] * 3,
            finished({"test_accuracy": score, "train_loss": 1.0}),
        )
        for method, score in (("baseline", 0.5), ("gradient_clipping", 0.4))
        for seed in (3,)
    ]
    (table,) = gather(tmp_path, runs)
    cells = {row.method: row.epochs_to_baseline for row in table.rows}
    assert cells["gradient_clipping"].mean == "reached by 1 of 3"


def test_a_copy_of_a_run_counts_once(tmp_path: Path) -> None:
    runs = made(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    both = find(tmp_path)
    assert len(both) == 2 * len(runs)
    (table,) = gather(tmp_path, both)
    assert sum(len(row.runs) for row in table.rows) == len(runs)
    # A folder that reproduces the paper has pages of its own.
    (tmp_path / "b" / "reproduction.json").write_text("{}")
    assert len(find(tmp_path)) == len(find(tmp_path / "b")) == len(runs)


def test_scores_of_two_classes_have_columns_and_a_run_without_them_a_dash(tmp_path: Path) -> None:
    runs = made(tmp_path)
    (table,) = gather(tmp_path, runs)
    keys = ["test_accuracy", "train_loss", "best_validation_test_accuracy", "seconds"]
    assert [column.key for column in table.columns] == keys  # none has them: of ten classes, say
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.5, 1.0], [0.0, 3.0]])
    scores = classification_scores(logits, torch.tensor([0, 0, 1, 1]))
    metrics = {f"test_{name}": score for name, score in scores.items()}
    for run in runs:
        if run.spec.method == "znorm":
            run.finish({**(run.result or {}), "metrics": {**run.metrics, **metrics}})
    (table,) = gather(tmp_path, runs)
    rows = {row.method: row for row in table.rows}
    shown = {
        column.title: (rows["znorm"].cells[place].mean, rows["baseline"].cells[place].mean)
        for place, column in enumerate(table.columns)
        if column.optional
    }
    # By hand: of the four pairs one is in the wrong order; each case is alone in its bin.
    chances = [1 / (1 + math.exp(-margin)) for margin in (-2.0, 1.0, 0.5, 3.0)]
    gaps = [abs(truth - chance) for truth, chance in zip((0, 0, 1, 1), chances, strict=True)]
    expected = {
        "Test AUROC": ("0.7500", "–"),
        "Test sensitivity, %": ("100.00", "–"),
        "Test specificity, %": ("50.00", "–"),
        "Test calibration error": (f"{sum(gaps) / 4:.4f}", "–"),
    }
    assert shown | expected == shown
    link = rows["znorm"].cells[1].values[0].link
    assert json.loads((tmp_path / link).read_text())["metrics"]["test_auroc"] == 0.75


def test_a_terminal_shows_what_it_has_room_for(tmp_path: Path) -> None:
    runs = made(tmp_path)
    for run in runs:
        run.finish({**(run.result or {}), "metrics": {**run.metrics, "test_auroc": 0.5}})
    (table,) = gather(tmp_path, runs)
    assert [str(column.header) for column in on_terminal(table).columns] == [
        "Method",
        "Test accuracy, %",
        "Train loss",
        "Time, s",
        "vs baseline",
        "Epochs to it",
    ]
