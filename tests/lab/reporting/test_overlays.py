"""Figures of masks: what is drawn where, and which cases are chosen."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from znorm.lab.reporting.overlays import TRUTH, Case, draw_cases, notable, outlined

RGB = (255, 255, 255)
ORANGE = (0xE0, 0x8A, 0x00)


@pytest.mark.parametrize(
    ("scores", "present", "expected"),
    [
        ([0.2, 0.9, 0.5], [True] * 3, {"best": 1, "median": 2, "worst": 0}),
        ([0.2, 0.9, 0.5, 0.6], [True] * 4, {"best": 1, "median": 2, "worst": 0}),
        ([1.0, 0.9, 0.5, 1.0], [False, True, True, False], {"best": 1, "median": 2}),
        ([0.4, 1.0], [True, False], {"best": 0}),
        ([1.0], [False], {}),
    ],
)
def test_the_best_the_median_and_the_worst(
    scores: list[float], present: list[bool], expected: dict[str, int]
) -> None:
    assert notable(scores, present) == expected


def square(top: int, left: int, size: int, side: int = 12) -> np.ndarray:
    mask = np.zeros((side, side), dtype=bool)
    mask[top : top + size, left : left + size] = True
    return mask


def test_outlines_are_boundary_pixels_in_their_colours() -> None:
    one = Case("a", np.zeros((12, 12, 3), np.uint8), square(1, 1, 4), {"x": square(6, 6, 3)})
    with Image.open(io.BytesIO(outlined(one))) as picture:
        pixels = np.asarray(picture)
    blue, orange = ((pixels == colour).all(2) for colour in (RGB, ORANGE))
    assert blue.sum() == 12  # the ring of a square of 4x4
    assert not blue[2:4, 2:4].any()
    assert orange.sum() == 8
    assert not pixels[~(square(1, 1, 4) | square(6, 6, 3))].any()
    assert tuple(int(TRUTH[at : at + 2], 16) for at in (1, 3, 5)) == RGB


def test_a_figure_has_a_row_a_case_and_a_column_a_method(tmp_path: Path) -> None:
    image = np.full((12, 12, 3), 40, np.uint8)
    truth = square(1, 1, 4)
    cases = [
        Case("best", image, truth, {"ZNorm": truth, "Baseline": square(1, 3, 4)}),
        Case("worst", image, truth, {"ZNorm": square(8, 8, 2), "Baseline": square(0, 0, 0)}),
    ]
    svg = draw_cases(cases)
    assert svg.count("<image") == 2 * 4
    for text in ("Image", "Ground truth", "ZNorm", "Baseline", "best", "worst"):
        assert f">{text}<" in svg
    # 2 * 8 / (16 + 16): half of a square of 4x4 that is moved by two columns.
    assert re.findall(r"Dice ([\d.]+)", svg) == ["1.000", "0.500", "0.000", "0.000"]
    # The true outline in each panel but the image's, then what was predicted, if anything.
    assert svg.count(f"stroke: {TRUTH}") == 2 * 3
    assert svg.count("stroke: #e08a00") == 3
    assert draw_cases(cases, tmp_path / "cases.png") == ""
    with Image.open(tmp_path / "cases.png") as picture:
        assert picture.size[0] > 2 * picture.size[1] * 0.7


def test_names_of_files_are_no_formulas() -> None:
    one = Case("a $^$ b", np.zeros((12, 12, 3), np.uint8), None, {"$^$": square(2, 2, 3)})
    svg = draw_cases([one])
    assert ">a $^$ b<" in svg
    assert ">$^$<" in svg


def test_a_case_without_truth_shows_no_score() -> None:
    one = Case("a", np.zeros((12, 12, 3), np.uint8), None, {"Prediction": square(2, 2, 3)})
    assert "Dice" not in draw_cases([one])
