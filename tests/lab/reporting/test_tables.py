"""Epochs to the baseline's final score, against tables made by hand."""

from __future__ import annotations

from pathlib import Path

from znorm.lab.reporting.tables import gather
from znorm.lab.spec import resolve
from znorm.lab.store import Run

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
        choices = {"method": method, "seed": seed, "epochs": 3, "device": "cpu"}
        run = Run.at(root, resolve({**choices, "precision": "float32"}))
        run.announce()
        for epoch, score in enumerate(scores, 1):
            run.log({"event": "epoch", "epoch": epoch, "test_accuracy": score})
        metrics = {"test_accuracy": scores[-1], "train_loss": 1.0}
        run.finish({"status": "done", "metrics": metrics, "seconds": 1.0})
        runs.append(run)
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
        "baseline": "2.5",
        "znorm": "2.0",
        "gradient_clipping": "reached by 1 of 2",  # no mean of those alone that got there
        "weight_decay_1e-3": "–",
    }
