"""The tables of cases and patients, against cases written by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lab.kit import finished, recorded
from znorm.lab.errors import DataError
from znorm.lab.metrics import Cases, ClassCases
from znorm.lab.reporting.cases import case_tables
from znorm.lab.reporting.page import write_page
from znorm.lab.reporting.tables import gather
from znorm.lab.runs.folder import Run

GONE = DataError("not here")


def classes(root: Path, method: str, seed: int, shares: tuple[float, ...]) -> Run:
    choices = {"model": "resnet20", "epochs": 1, "method": method, "seed": seed}
    metrics = {"test_accuracy": 0.5, "train_loss": 1.0}
    run = recorded(root, choices, [metrics], finished(metrics))
    predicted = tuple("cat" if share > 0.5 else "dog" for share in shares)
    run.save_cases(ClassCases(("x", "y", "z"), ("p", "p", "q"), ("cat",) * 3, predicted, shares))
    return run


def test_cases_of_classes_are_means_over_seeds_the_worst_first(tmp_path: Path) -> None:
    runs = [
        classes(tmp_path, "baseline", 0, (0.9, 0.2, 0.6)),
        classes(tmp_path, "baseline", 1, (0.7, 0.4, 0.8)),
        classes(tmp_path, "znorm", 0, (0.1, 0.3, 1.0)),
    ]
    (table,) = gather(tmp_path, runs)
    cases, patients = case_tables(tmp_path, table, GONE, images=True)
    assert cases.methods == ("Baseline", "ZNorm")
    assert [(row.name, row.about) for row in cases.rows] == [
        ("y", "cat; p"),
        ("x", "cat; p"),
        ("z", "cat; q"),
    ]
    assert [row.scores for row in cases.rows] == [
        pytest.approx((0.3, 0.3)),
        pytest.approx((0.8, 0.1)),
        pytest.approx((0.7, 1.0)),
    ]
    # Of p the baseline has x right in both runs and y in none.
    assert [(row.name, row.scores) for row in patients.rows] == [
        ("p", (0.5, 0.0)),
        ("q", (1.0, 1.0)),
    ]
    text = write_page(tmp_path, runs, {runs[0].spec.data_key: GONE}).read_text()
    assert "Test images by probability of the true class, the worst first" in text


def test_runs_of_other_cases_and_those_without_any_are_left_out(tmp_path: Path) -> None:
    one = classes(tmp_path, "baseline", 0, (0.9, 0.2, 0.6))
    other = classes(tmp_path, "baseline", 1, (0.7, 0.4, 0.8))
    other.save_cases(ClassCases(("x",), None, ("cat",), ("cat",), (0.9,)))
    without = classes(tmp_path, "znorm", 0, (0.7, 0.4, 0.8))
    (without.folder / "cases.csv").unlink()
    (table,) = gather(tmp_path, [one, other, without])
    cases, _ = case_tables(tmp_path, table, GONE, images=True)
    assert cases.methods == ("Baseline",)
    assert {row.name: row.scores for row in cases.rows} == {"x": (0.9,), "y": (0.2,), "z": (0.6,)}
    (one.folder / "cases.csv").unlink()
    (other.folder / "cases.csv").unlink()
    assert case_tables(tmp_path, table, GONE, images=True) == []


def test_masks_of_several_classes_have_a_table_of_them(tmp_path: Path) -> None:
    choices = {"task": "phantom", "model": "attention_unet", "epochs": 1, "method": "znorm"}
    metrics = {"test_f1": 0.5, "train_loss": 1.0}
    run = recorded(tmp_path, choices, [metrics], finished(metrics))
    truth = torch.tensor([[[1, 1, 2, 2]], [[1, 0, 0, 0]]], dtype=torch.uint8)
    found = torch.tensor([[[1, 0, 2, 2]], [[0, 1, 0, 0]]], dtype=torch.uint8)
    run.save_cases(Cases.of(found, truth, ["a", "b"], labels=["liver", "tumour"]))
    (table,) = gather(tmp_path, [run])
    cases, labels = case_tables(tmp_path, table, GONE, images=True)
    # Of b the liver is missed, and there is no tumour: (0 + 1) / 2.
    assert [(row.name, row.scores) for row in cases.rows] == [
        ("b", (0.5,)),
        ("a", (pytest.approx((2 / 3 + 1) / 2),)),
    ]
    # Pooled: liver TP 1, FP 1, FN 2; tumour TP 2.
    assert [(row.name, row.scores) for row in labels.rows] == [
        ("liver", (pytest.approx(2 / 5),)),
        ("tumour", (1.0,)),
    ]
