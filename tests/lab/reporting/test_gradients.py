"""Gradients by depth: which norms of which layers are drawn, in which panels."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest

from lab.kit import recorded
from znorm.lab.reporting import gradients
from znorm.lab.reporting.gradients import gradients_by_depth
from znorm.lab.reporting.tables import gather
from znorm.lab.runs.folder import Run


def receipt(before: dict[str, float], factor: float = 1.0) -> dict[str, dict[str, float]]:
    return {
        name: {"norm_before": norm, "norm_after": factor * norm, "steps": 3}
        for name, norm in before.items()
    }


def made(root: Path, method: str, seed: int, receipts: list[Any]) -> None:
    scores = {"train_loss": 0.5, "test_accuracy": 0.5}
    epochs = [scores if one is None else {**scores, "receipt": one} for one in receipts]
    recorded(root, {"method": method, "seed": seed, "receipt": True}, epochs)


def test_lines_are_the_norms_of_layers_that_all_methods_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    early, late = {"a": 1.0, "bias": 9.0, "b": 0.0}, {"a": 4.0, "bias": 9.0, "b": 2.0}
    made(tmp_path, "baseline", 0, [])  # nothing kept: of seed 1 both are
    made(tmp_path, "baseline", 1, [receipt(early), receipt(late)])
    made(tmp_path, "znorm", 0, [receipt({"a": 7.0, "b": 7.0})])
    made(tmp_path, "znorm", 1, [receipt({"a": 0.5, "b": 8.0}, factor=10.0)])
    drawn: list[Any] = []
    monkeypatch.setattr(gradients, "_panel", lambda *panel: drawn.append(panel) or "svg")
    (table,) = gather(tmp_path, [Run.open(p.parent) for p in tmp_path.rglob("spec.json")])
    found = gradients_by_depth(table)
    assert found is not None
    assert (found.panels, found.seed) == (("svg",) * 3, 1)
    titles = [title for title, *_ in drawn]
    assert titles == ["Baseline: gradient", "ZNorm: gradient", "ZNorm: what the optimizer gets"]
    baseline, before, after = (lines for _, lines, *_ in drawn)
    assert str(baseline) == "[(1, [1.0, nan]), (2, [4.0, 2.0])]"  # zero has no logarithm
    assert before == [(1, [0.5, 8.0])]
    assert after == [(1, [5.0, 80.0])]
    assert {limits for _, _, limits, _ in drawn} == {(0.25, 160.0)}


def test_a_panel_has_a_line_an_epoch(tmp_path: Path) -> None:
    made(tmp_path, "baseline", 0, [receipt({"a": 1.0, "b": 2.0})] * 3)
    (table,) = gather(tmp_path, [Run.open(p.parent) for p in tmp_path.rglob("spec.json")])
    found = gradients_by_depth(table)
    assert found is not None
    (panel,) = found.panels
    assert panel.svg.startswith("<svg")
    # Powers of ten are set as such, not as the text of a formula.
    assert "mathdefault" not in re.sub("<!--.*?-->", "", panel.svg)
    for text in ("Baseline: gradient", "layer, from the input on", "norm", "epoch"):
        assert f">{text}<" in panel.svg


def test_without_receipts_there_is_no_figure(tmp_path: Path) -> None:
    made(tmp_path, "baseline", 0, [None, None])
    (table,) = gather(tmp_path, [Run.open(p.parent) for p in tmp_path.rglob("spec.json")])
    assert gradients_by_depth(table) is None


@pytest.mark.parametrize("damaged", [{"w": {"x": 1}}, {"w": {"norm_before": 1.0}}, {"w": {}}])
def test_a_damaged_receipt_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: Any
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(gradients, "_panel", lambda *panel: drawn.append(panel) or "svg")
    made(tmp_path, "baseline", 0, [receipt({"w": 1.0}), damaged, receipt({"w": 3.0})])
    made(tmp_path, "znorm", 0, [receipt({"w": 2.0})])
    (table,) = gather(tmp_path, [Run.open(p.parent) for p in tmp_path.rglob("spec.json")])
    assert gradients_by_depth(table) is not None
    assert [lines for _, lines, *_ in drawn] == [
        [(1, [1.0]), (3, [3.0])],
        [(1, [2.0])],
        [(1, [2.0])],
    ]


def test_damaged_receipts_alone_make_no_figure(tmp_path: Path) -> None:
    made(tmp_path, "baseline", 0, [{"w": {"x": 1}}])
    (table,) = gather(tmp_path, [Run.open(p.parent) for p in tmp_path.rglob("spec.json")])
    assert gradients_by_depth(table) is None


def test_norms_that_no_axis_can_hold_are_left_out(tmp_path: Path) -> None:
    made(tmp_path, "baseline", 0, [receipt({"a": 9e299, "b": 1e-299, "c": 1e-30, "d": 1e30})])
    (table,) = gather(tmp_path, [Run.open(p.parent) for p in tmp_path.rglob("spec.json")])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert gradients_by_depth(table) is not None
