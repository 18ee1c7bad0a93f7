"""Figures are the same whatever settings of matplotlib lie around, and without noise."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest

from znorm import lab
from znorm.lab.reporting.overlays import Case, draw_cases

VALUES = {"norm_before": 1e-3, "norm_after": 2.0, "mean": -1e-5, "std": 1e-3, "cosine": 0.9}
RECEIPT = {"w": {**VALUES, "clipped": 0.0, "steps": 3}}

DRAW = f"""
import sys
from znorm import lab
lab.draw_receipt({RECEIPT!r}, sys.argv[1])
from znorm.lab.reporting.svg import as_svg, style
with style():
    from matplotlib.figure import Figure
    figure = Figure()
    figure.subplots().set_title("a title")
    print(as_svg(figure, label="a title"))
"""


def drawn(folder: Path) -> tuple[str, bytes]:
    """What is drawn in a process of its own that starts in a folder."""
    file = folder / "depth.svg"
    command = [sys.executable, "-c", DRAW, str(file)]
    source = str(Path(lab.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": source}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout, file.read_bytes()


def test_a_matplotlibrc_of_the_current_folder_changes_no_figure(tmp_path: Path) -> None:
    seen = []
    contents = {
        "none": None,
        "latex": b"text.usetex: True\nlines.linewidth: 9\n",
        "garbage": b"\xff\xfe\x81garbage",
        "unknown": b"no.such.key: 3\nlines.linewidth: wide\n",
    }
    for name, content in contents.items():
        folder = tmp_path / name
        folder.mkdir()
        if content is not None:
            (folder / "matplotlibrc").write_bytes(content)
        seen.append(drawn(folder))
    assert seen[1:] == seen[:1] * 3


def test_settings_of_a_notebook_change_no_figure_and_stay_as_they_are(tmp_path: Path) -> None:
    plain = lab.draw_receipt(RECEIPT, tmp_path / "plain.svg").read_bytes()
    own = {"text.usetex": True, "lines.linewidth": 9.0, "savefig.dpi": 30, "font.size": 30}
    with mpl.rc_context(own):
        other = lab.draw_receipt(RECEIPT, tmp_path / "other.svg").read_bytes()
        assert {key: mpl.rcParams[key] for key in own} == own
    assert other == plain


@pytest.mark.parametrize("name", ["脑部 切片", "a\x07b", "b\udcfcr", "\ud800", "$x$"])
def test_any_name_of_a_file_or_a_layer_can_stand_in_a_figure(tmp_path: Path, name: str) -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    mask = np.zeros((8, 8), bool)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg = draw_cases([Case(name, image, mask, {name: mask})])
        draw_cases([Case(name, image, mask, {name: mask})], tmp_path / "cases.png")
        text = lab.draw_receipt({name: RECEIPT["w"]}, tmp_path / "depth.svg").read_text("utf-8")
        lab.draw_receipt({name: RECEIPT["w"]}, tmp_path / "depth.png")
    shown = {"a\x07b": "a?b", "b\udcfcr": "b?r", "\ud800": "?"}.get(name, name)
    assert f">{shown}<" in svg
    assert f">{shown}<" in text
