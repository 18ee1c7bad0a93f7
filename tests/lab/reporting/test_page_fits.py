"""Every column of the page's tables is in sight, on a telephone and on a wide screen."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lab.kit import finished, recorded
from znorm.lab.errors import DataError
from znorm.lab.methods import PUBLISHED
from znorm.lab.metrics import DEFINITIONS
from znorm.lab.paper.page import frame_of
from znorm.lab.paper.record import Record
from znorm.lab.reporting.page import write_page
from znorm.lab.reporting.tables import columns_of
from znorm.lab.runs.folder import Run
from znorm.lab.tasks import TASKS

WIDTHS = (390, 1400, 2560)
SEEDS = 5
# Mistakes come with paths, which have no place to break.
ERROR = f"DataError: <b>/data/{'a_long_folder_name_' * 8}slice.tif</b> & more"
MODELS = {"phantom": "attention_unet", "pcam_mini": "resnet56"}
HEADS = {
    "phantom": [
        "Method",
        "Test F1",
        "Test F1 against Baseline",
        "Epochs to the baseline's final test F1",
    ],
    "pcam_mini": [
        "Method",
        "Test accuracy, %",
        "Test accuracy against Baseline, points",
        "Epochs to the baseline's final test accuracy",
    ],
}


def made(root: Path, task: str, method: str, seed: int, **choices: Any) -> Run:
    """A run as if it had been trained, its scores as wide as scores get."""
    chosen = {"task": task, "model": MODELS[task], "method": method, "seed": seed, "epochs": 2}
    if (method, seed) == ("gradient_clipping", 1):
        failed = {"status": "failed", "metrics": {}, "error": ERROR}
        return recorded(root, {**chosen, **choices}, result=failed)
    columns = columns_of(TASKS[task].output)
    metrics = {column.key: 0.1234 + 0.17 * seed for column in columns}
    if task == "phantom":
        metrics["test_hausdorff"] = 123.45 + 100 * seed
    headline = columns[0].key
    epochs = 2 * [{headline: metrics[headline], "train_loss": 0.5}]
    result = finished(metrics, seconds=12345.6 * (1 + seed))
    return recorded(root, {**chosen, **choices}, epochs, result)


def page(root: Path, *tasks: str, record: Record | None = None) -> str:
    """The page of runs of these tasks: six methods and one of the user's own, five seeds."""
    own = {"transform": ["UnitNorm"]}
    runs = [
        made(root, task, method, seed, **choices)
        for task in tasks
        for seed in range(SEEDS)
        for method, choices in [
            *((name, {}) for name in PUBLISHED),
            ("unit_norm_" + "of_mine_" * 4, own),
        ]
    ]
    missing = DataError("no data here")
    frame = None if record is None else frame_of(record)
    return write_page(root, runs, {run.spec.data_key: missing for run in runs}, frame).read_text()


PAGES: dict[str, tuple[tuple[str, ...], Record | None]] = {
    "masks": (("phantom",), None),
    "classes": (("pcam_mini",), None),
    "paper": (
        ("pcam_mini", "phantom"),
        Record("smoke", {"table2": "pcam_mini", "table3": "phantom"}),
    ),
}


@pytest.fixture(scope="module", params=PAGES)
def text(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    tasks, record = PAGES[request.param]
    return page(tmp_path_factory.mktemp(request.param), *tasks, record=record)


@dataclass
class Cell:
    tag: str
    held: dict[str, str | None]
    text: str = ""


@dataclass
class Grid:
    """A table of the page: its kind and its rows, each a list of cells."""

    kind: str
    rows: list[list[Cell]] = field(default_factory=list)

    @property
    def titles(self) -> list[str]:
        return [cell.text for cell in self.rows[0]]


class Grids(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[Grid] = []
        self.cell: Cell | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        held = dict(attrs)
        if tag == "table":
            self.found.append(Grid(held["class"] or ""))
        elif tag == "tr":
            self.found[-1].rows.append([])
        elif tag in ("th", "td"):
            self.cell = Cell(tag, held)
            self.found[-1].rows[-1].append(self.cell)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("th", "td"):
            self.cell = None

    def handle_data(self, data: str) -> None:
        if self.cell is not None:
            self.cell.text += data


@pytest.mark.parametrize("task", HEADS)
def test_the_comparison_comes_first_and_every_other_column_below_it(
    task: str, tmp_path: Path
) -> None:
    text = page(tmp_path, task)
    first, beside, second = Grids(text).found
    assert beside.kind == "evidence further"
    assert (first.kind, first.titles) == ("headline", HEADS[task])
    columns = columns_of(TASKS[task].output)
    titles = [column.title for column in columns[1:]]
    assert (second.kind, second.titles) == ("further", ["Method", *titles])
    for column in columns:
        definition = DEFINITIONS.get(column.key.removeprefix("test_"))
        if definition is not None:
            assert html.escape(definition, quote=False) in text.replace("&#39;", "'")


def test_a_cell_is_labelled_with_the_title_of_its_column(text: str) -> None:
    grids = Grids(text).found
    for grid in grids:
        for row in grid.rows[1:]:
            if grid.kind == "paper" or "Floor" in row[0].text:
                continue
            assert [cell.held["data-label"] for cell in row[1:]] == grid.titles[1:]
    papers = [grid for grid in grids if grid.kind == "paper"]
    for grid in papers:
        assert len(grid.titles) == 3  # two scores: their six columns fit
        for row in grid.rows[3:]:
            if len(row) == 1:
                continue  # a model
            labels = [cell.held["data-label"] for cell in row[1:]]
            assert labels == 2 * ["published", "here", "difference"]
            assert [cell.held["data-title"] for cell in row[1::3]] == grid.titles[1:]
    assert not papers or [grid.titles[1] for grid in papers] == [
        "Test accuracy, %",
        "Test F1",
        "Test Hausdorff, pixels",
    ]


def test_what_runs_say_is_text_on_the_page(text: str) -> None:
    assert html.escape(ERROR) in text
    assert "<b>" not in text


def test_without_two_classes_there_is_no_column_for_their_scores(tmp_path: Path) -> None:
    runs = [made(tmp_path, "pcam_mini", method, 0) for method in ("baseline", "znorm")]
    kept = {"test_accuracy": 0.5, "train_loss": 1.0}
    for run in runs:
        run.finish({**(run.result or {}), "metrics": kept})
    text = write_page(
        tmp_path, runs, {run.spec.data_key: DataError("no data here") for run in runs}
    ).read_text()
    _, _, further = Grids(text).found
    assert further.titles == [
        "Method",
        "Train loss",
        "Test accuracy at best validation, %",
        "Time, s",
    ]
    assert [row[2].text for row in further.rows[1:]] == ["–", "–"]
    assert "AUROC" not in text


# Runs at the end of the page in a frame of each width; what it finds goes into the page around.
MEASURE = r"""
const view = document.documentElement.clientWidth;
const out = (left, right, text, why) => [why, text.trim().slice(0, 40), left, right];
const bad = [], kinds = {};
const check = (box, place, text) => {
  if (box.left < -0.5 || box.right > view + 0.5) bad.push(out(box.left, box.right, text, 'window'));
  for (let above = place; above; above = above.parentElement) {
    if (getComputedStyle(above).overflowX === 'visible') continue;
    const edge = above.getBoundingClientRect();
    if (box.left < edge.left - 0.5 || box.right > edge.right + 0.5)
      bad.push(out(box.left, box.right, text, 'container'));
  }
};
for (const table of document.querySelectorAll('table')) {
  // The values at a pointer show once there is one: test_browser.py has one.
  if (table.closest('.readout')) continue;
  const blocks = getComputedStyle(table).display === 'block';
  kinds[table.className] = blocks ? 'blocks' : 'table';
  for (const cell of table.querySelectorAll('th, td')) {
    if (blocks && (cell.closest('thead') || !cell.textContent)) continue;
    const box = cell.getBoundingClientRect(), text = cell.textContent;
    if (!box.width || !box.height) bad.push(out(box.left, box.right, text, 'hidden'));
    check(box, cell.parentElement, text);
    if (blocks && cell.tagName === 'TD') {
      const label = getComputedStyle(cell, '::before').content;
      if (label !== JSON.stringify(cell.dataset.label)) bad.push(out(0, 0, text, 'no label'));
    }
    // What is written in a cell stays within it.
    const walk = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT), range = new Range();
    while (walk.nextNode()) {
      range.selectNodeContents(walk.currentNode);
      for (const line of range.getClientRects())
        if (line.width && (line.left < box.left - 0.5 || line.right > box.right + 0.5))
          bad.push(out(line.left, line.right, walk.currentNode.data, 'cell'));
    }
  }
}
parent.document.getElementById('found').textContent += JSON.stringify({
  width: innerWidth, scroll: document.documentElement.scrollWidth, kinds, bad}) + '\n';
"""


def browser() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        found = shutil.which(name)
        if found is not None:
            return found
    pytest.skip("no chromium, chromium-browser or google-chrome is on the PATH")


def measured(text: str, folder: Path) -> dict[int, dict[str, Any]]:
    """What a browser finds on a page in a window of each width.

    The windows are frames, since one of a browser's own is never narrower than 500 pixels.
    """
    script = f"<script>{{{MEASURE}}}</script>"
    (folder / "page.html").write_text(text.replace("</body>", f"{script}</body>"))
    frames = "".join(
        f'<iframe src="page.html" width="{width}" height="1000" style="border: 0"></iframe>'
        for width in WIDTHS
    )
    outer = folder / "frames.html"
    outer.write_text(f'<!doctype html><pre id="found"></pre>{frames}')
    command = [browser(), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += ["--allow-file-access-from-files", f"--user-data-dir={folder / 'profile'}"]
    command += ["--window-size=2600,1000", outer.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found is not None, done.stderr
    lines = [json.loads(line) for line in html.unescape(found[1]).splitlines()]
    return {line["width"]: line for line in lines}


@pytest.mark.slow
def test_every_column_is_in_sight_at_every_width(text: str, tmp_path: Path) -> None:
    found = measured(text, tmp_path)
    assert set(found) == set(WIDTHS)
    for width, page in found.items():
        assert page["scroll"] <= width
        assert page["bad"] == [], width
        assert {"headline", "further"} <= page["kinds"].keys()
        assert set(page["kinds"].values()) == {"blocks" if width == 390 else "table"}


@pytest.mark.slow
def test_a_table_that_is_too_wide_is_found(tmp_path: Path) -> None:
    text = page(tmp_path, "phantom")
    wide = text.replace("</style>", "table { min-width: 100rem; }</style>")
    found = measured(wide, tmp_path)
    assert all(found[width]["bad"] for width in (390, 1400))
    assert found[390]["scroll"] > 390
    hidden = wide.replace("</style>", "section { overflow-x: auto; }</style>")
    whys = {why for why, *_ in measured(hidden, tmp_path)[1400]["bad"]}
    assert whys == {"window", "container"}
