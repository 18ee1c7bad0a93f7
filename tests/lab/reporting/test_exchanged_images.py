"""Images that were exchanged between runs: nothing is averaged over them, others are not shown."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lab.kit import PLAIN, finished, recorded
from znorm.lab import tasks
from znorm.lab.datasets import Dataset, Split
from znorm.lab.errors import DataError
from znorm.lab.paper.record import Record
from znorm.lab.paper.tables import paper_on_terminal, paper_tables
from znorm.lab.reporting import figures
from znorm.lab.reporting.figures import curves
from znorm.lab.reporting.page import write_page
from znorm.lab.reporting.tables import Table, gather, on_terminal
from znorm.lab.reporting.trivial_baseline import folder, trivial_baseline
from znorm.lab.runs.folder import Run
from znorm.lab.spec import resolve

CHOICES = {**PLAIN, "epochs": 1, "data.limit": 24}


def made(root: Path, images: dict[int, str | None]) -> list[Run]:
    """Runs of two methods at each seed, on images of the fingerprint that stands by the seed."""
    runs = []
    for seed, data in images.items():
        for method, gain in (("baseline", 0.0), ("znorm", 0.1)):
            choices = {**CHOICES, "method": method, "seed": seed}
            score = 0.5 + 0.1 * seed + gain
            metrics = {"test_accuracy": score, "train_loss": 1.0}
            hashes = {} if data is None else {"data": data}
            runs.append(recorded(root, choices, [metrics], finished(metrics, hashes=hashes)))
    return runs


def page(root: Path, runs: list[Run], images: Dataset | DataError) -> str:
    return write_page(root, runs, {run.spec.data_key: images for run in runs}).read_text()


def printed(table: Any) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


@pytest.fixture
def data() -> Dataset:
    return tasks.load("pcam_mini", resolve(CHOICES).data)


@pytest.fixture
def others(data: Dataset) -> Dataset:
    """As many others, one of which has changed its class."""
    labels = data.test.labels.clone()
    labels[0] = 1 - labels[0]
    return replace(data, test=Split(data.test.images, labels), notes=("The others.",))


def means(table: Table) -> set[str]:
    cells = [cell for row in table.rows for cell in (*row.cells, row.epochs_to_baseline)]
    cells += [row.difference for row in table.rows if row.difference is not None]
    return {cell.mean for cell in cells if cell.mean != "–"}


WARNING = "trained on 2 different sets of images (aaaaaaaa at seed 0; bbbbbbbb at seed 1)"


def test_runs_on_different_images_have_no_mean_and_the_page_and_the_terminal_say_so(
    tmp_path: Path,
) -> None:
    runs = made(tmp_path, {0: "a" * 64, 1: "b" * 64})
    (table,) = gather(tmp_path, runs)
    assert means(table) == {"no mean"}
    for row in table.rows:
        assert all(cell.interval is None and cell.half == "" for cell in row.cells)
        assert len(row.cells[0].values) == 2  # each run by itself is shown
    assert table.rows[1].cells[0].values[1].text == "70.00"
    text = page(tmp_path, runs, DataError("no data here"))
    assert WARNING in text
    assert "±" not in text.partition("Mean ± half")[0]
    shown = printed(on_terminal(table))
    assert WARNING in " ".join(shown.split())
    assert shown.count("±") == 1  # of the title
    record = Record("reduced", {"table2": "pcam_mini"})
    (paper,) = paper_tables(record, [replace(table, spec=_resnet56(table))])
    assert WARNING in " ".join(printed(paper_on_terminal(paper)).split())


def _resnet56(table: Table) -> Any:
    return table.spec.model_copy(update={"model": "resnet56"})


@pytest.mark.parametrize(
    "images", [{0: "a" * 64, 1: "a" * 64}, {0: None, 1: None}, {0: "a" * 64, 1: None}]
)
def test_runs_on_the_same_images_or_of_an_earlier_version_have_their_mean(
    tmp_path: Path, images: dict[int, str | None]
) -> None:
    runs = made(tmp_path, images)
    (table,) = gather(tmp_path, runs)
    # By hand: 50 and 60, 60 and 70; half the difference of 10 times 12.706.
    assert [row.cells[0].mean for row in table.rows] == ["55.00", "65.00"]
    assert {row.cells[0].half for row in table.rows} == {"63.53"}
    assert table.rows[1].difference is not None
    assert table.rows[1].difference.mean == "+10.00"
    assert table.warnings == ()
    assert "different" not in page(tmp_path, runs, DataError("no data here"))


def test_curves_of_runs_on_different_images_are_not_averaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    original = figures._line

    def noted(label: Any, runs: Any, *rest: Any) -> Any:
        drawn.append([run.spec.seed for run in runs])
        return original(label, runs, *rest)

    monkeypatch.setattr(figures, "_line", noted)
    (table,) = gather(tmp_path, made(tmp_path / "two", {0: "a" * 64, 1: "b" * 64}))
    curves(table)
    assert drawn == [[0], [1]] * 4  # two methods, two panels
    drawn.clear()
    (table,) = gather(tmp_path, made(tmp_path / "one", {0: "a" * 64, 1: "a" * 64}))
    curves(table)
    assert drawn == [[0, 1]] * 4


def test_the_floor_follows_the_images(tmp_path: Path, data: Dataset, others: Dataset) -> None:
    spec = resolve(CHOICES)
    first = trivial_baseline(tmp_path, spec, data)
    assert first["fingerprint"] == data.fingerprint
    assert trivial_baseline(tmp_path, spec, data) == first
    second = trivial_baseline(tmp_path, spec, others)
    fresh = trivial_baseline(tmp_path / "fresh", spec, others)
    assert second == fresh
    assert second["metrics"]["test_accuracy"] != first["metrics"]["test_accuracy"]
    # Runs on the first images have no floor now, those on the second do, as do those that do not
    # tell.
    shown = {}
    for name, fingerprint in (("a", data.fingerprint), ("b", others.fingerprint), ("c", None)):
        (table,) = gather(tmp_path, made(tmp_path / name, {0: fingerprint}))
        shown[name] = table.trivial_baseline
    assert shown == {"a": None, "b": second, "c": second}


def test_a_floor_of_an_earlier_version_is_kept(
    tmp_path: Path, data: Dataset, others: Dataset
) -> None:
    spec = resolve(CHOICES)
    held = trivial_baseline(tmp_path, spec, data)
    del held["fingerprint"]
    path = folder(tmp_path, spec) / "result.json"
    path.write_text(json.dumps(held))
    assert trivial_baseline(tmp_path, spec, others) == held
    (table,) = gather(tmp_path, made(tmp_path, {0: others.fingerprint}))
    assert table.trivial_baseline == held


def test_a_page_shows_no_images_but_those_that_its_runs_were_trained_on(
    tmp_path: Path, data: Dataset, others: Dataset
) -> None:
    runs = made(tmp_path, {0: data.fingerprint})
    before = page(tmp_path, runs, data)
    assert "<img" in before
    assert "are not those" not in before
    text = page(tmp_path, runs, others)
    assert "The images that are here now are not those that these runs were trained on." in text
    assert "<img" not in text
    # What was known of the first images still stands there.
    assert "24 (12 no tumour, 12 tumour)" in text
    assert "The others." not in text
    # Runs on the others have a card of their own, and leave that of the first as it was.
    new = page(tmp_path, made(tmp_path / "new", {1: others.fingerprint}), others)
    assert "The others." in new
    assert "The others." not in page(tmp_path, runs, DataError("no data here"))
    assert page(tmp_path, runs, data) == before


def test_exchanged_images_that_no_card_is_kept_of_are_said_not_to_be_here(
    tmp_path: Path, data: Dataset, others: Dataset
) -> None:
    text = page(tmp_path, made(tmp_path, {0: data.fingerprint}), others)
    assert "The images are not here: others have been put in their place" in text
    assert "The others." not in text
