"""What `reproduce` trains and shows, and that its pages hold the published numbers."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch

from znorm import lab
from znorm.lab import tasks
from znorm.lab.cli import run
from znorm.lab.paper.grids import TARGETS
from znorm.lab.paper.record import Record
from znorm.lab.paper.tables import paper_tables
from znorm.lab.reporting import masks as figures
from znorm.lab.reporting.tables import gather
from znorm.lab.runs import runner
from znorm.lab.runs.folder import Run
from znorm.lab.runs.survey import find
from znorm.lab.spec import resolve


class Cells(HTMLParser):
    """The text of each published cell, by its key."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: dict[str, str] = {}
        self.key: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.key = dict(attrs).get("data-cell")

    def handle_data(self, data: str) -> None:
        if self.key is not None:
            assert self.found.setdefault(self.key, data) == data
            self.key = None


@pytest.fixture(scope="module")
def nowhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZNORM_DATA_DIR", str(tmp_path_factory.mktemp("nothing")))
        yield


@pytest.fixture(scope="module")
def smoked(tmp_path_factory: pytest.TempPathFactory, nowhere: None) -> Path:
    """A little of each target in one folder."""
    out = tmp_path_factory.mktemp("smoke")
    common: dict[str, Any] = {"out": out, "device": "cpu", "precision": "float32"}
    lab.reproduce("all", models=["resnet56", "attention_unet"], methods="baseline,znorm", **common)
    lab.reproduce("gradients", limit=16, **common)
    return out


def published_rows() -> list[dict[str, str]]:
    text = resources.files("znorm.lab.paper").joinpath("published.csv").read_text()
    return list(csv.DictReader(text.splitlines()))


def test_the_page_holds_all_162_published_numbers(smoked: Path) -> None:
    found = Cells((smoked / "report.html").read_text()).found
    assert len(found) == 162
    for row in published_rows():
        key = f"{row['dataset']} {row['model']} {row['method']} {row['metric']}"
        scale = 100 if row["metric"] == "test_accuracy" else 1
        assert float(found[key]) == pytest.approx(scale * float(row["value"]), abs=1e-9), key


def test_smoke_is_marked_wherever_it_is_shown(
    smoked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (smoked / "report.html").read_text()
    assert "Not a result. Scale smoke" in text
    sections = text.count("<section")
    assert text.count(">Not a result.<") == sections >= 3 + 4
    for task in ("cifar10", "patchcamelyon", "lgg_mri"):
        assert f"The images of {task} were not here" in text
    assert "pcam_mini stands in" not in text  # by its label
    assert "PatchCamelyon mini stands in for CIFAR-10; epochs 1, not 100" in text
    again = lab.report(smoked)
    assert again.read_text() == text


def test_what_stands_in_is_not_held_against_the_published(smoked: Path) -> None:
    record = Record.read(smoked)
    assert record is not None
    tables = paper_tables(record, gather(smoked, find(smoked)))
    assert [table.label for table in tables] == ["Table 1", "Table 2", "Table 3"]
    cells = [c for t in tables for b in t.blocks for line in b.lines for c in line.cells]
    assert any(cell.here for cell in cells)
    assert not any(cell.difference for cell in cells)
    # ResNet-56 of the gradients, which kept receipts, is no run of Table 1.
    (block,) = [block for block in tables[0].blocks if block.table is not None]
    assert block.table is not None
    assert not block.table.spec.receipt
    # Both of our distances stand beside the one of theirs.
    columns = [column.key for column in tables[2].columns]
    assert columns == ["test_f1", "test_tversky", "test_hausdorff", "test_hausdorff_rows"]
    for line in tables[2].blocks[2].lines:
        pixels, rows = line.cells[2:]
        assert pixels.published == rows.published
        assert pixels.key == rows.key


def test_sections_stand_in_the_order_of_the_paper(smoked: Path) -> None:
    text = (smoked / "report.html").read_text()
    heads = re.findall(r'<section id="runs-\d+">\n<h2>([^<]*)</h2>', text)
    assert [head.split(", ")[1] for head in heads] == [
        "resnet56",
        "attention_unet",
        "plain56",
        "resnet56",
        "resnet56",
    ]


@pytest.mark.slow
def test_figures_are_drawn(smoked: Path) -> None:
    text = (smoked / "report.html").read_text()
    assert text.count("Masks beside the ground truth") == 1
    assert "White: the true outline; orange: the net" in text
    assert text.count(">Gradients by depth<") == 3  # ResNet-56 twice, with 24 images and with 16
    for title in ("Baseline: gradient", "ZNorm: gradient", "ZNorm: what the optimizer gets"):
        assert text.count(f">{title}<") == 3
    without = lab.report(smoked, images=False).read_text()
    assert "<img" not in without
    assert "<image" not in without
    assert "Pictures of the data are left out" in without
    lab.report(smoked)


def test_the_same_call_again_trains_nothing(smoked: Path) -> None:
    before = {run.folder: (run.folder / "result.json").stat().st_mtime_ns for run in find(smoked)}
    runs = lab.reproduce(
        "table3",
        models="attention_unet",
        methods="baseline,znorm",
        out=smoked,
        device="cpu",
        precision="float32",
    )
    assert {run.folder for run in runs} <= before.keys()
    after = {run.folder: (run.folder / "result.json").stat().st_mtime_ns for run in find(smoked)}
    assert after == before


def test_a_folder_holds_one_scale(smoked: Path, tmp_path: Path) -> None:
    with pytest.raises(lab.ConfigurationError, match="holds runs at scale smoke; give"):
        Record("reduced", {"table1": "cifar10"}).write(smoked)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "reproduction.json").write_text("{")
    with pytest.raises(lab.DataError, match=r"reproduction\.json: cannot be read"):
        Record.read(broken)
    (broken / "reproduction.json").write_text('{"scale": "huge"}')
    with pytest.raises(lab.DataError, match="not of this version"):
        Record.read(broken)


def test_what_is_refused_leaves_no_mark_on_a_folder(tmp_path: Path, nowhere: None) -> None:
    small: dict[str, Any] = {"models": "resnet56", "methods": "znorm", "limit": 8}
    with pytest.raises(lab.ConfigurationError, match="jobs: expected"):
        lab.reproduce("table1", out=tmp_path / "new", jobs=0, **small)
    assert not (tmp_path / "new").exists()
    lab.compare(methods=["znorm"], seeds=1, epochs=1, limit=8, out=tmp_path / "mine")
    with pytest.raises(lab.ConfigurationError, match="holds runs that are no reproduction"):
        lab.reproduce("table1", out=tmp_path / "mine", **small)
    assert Record.read(tmp_path / "mine") is None


def test_a_page_above_shows_nothing_of_a_folder_that_is_marked(smoked: Path) -> None:
    assert find(smoked)
    assert not [one for one in find(smoked.parent) if smoked in one.folder.parents]


@pytest.mark.slow
def test_slices_of_ones_own_choice(smoked: Path) -> None:
    chosen: dict[str, Any] = {
        "models": "attention_unet",
        "methods": "baseline,znorm",
        "out": smoked,
        "device": "cpu",
        "precision": "float32",
    }
    with pytest.raises(lab.ConfigurationError, match="no test slice 'test-0_9' here; did you mean"):
        lab.reproduce("figure2", cases="test-0_9", **chosen)
    (one, _) = lab.reproduce("figure2", **chosen)
    cases = one.cases()
    assert cases is not None
    empty = cases.names[cases.target_found.tolist().index(False)]
    lab.reproduce("figure2", cases=[empty], **chosen)
    assert f">{empty}<" in (smoked / "report.html").read_text()
    assert f">{empty}<" in lab.report(smoked).read_text()  # it is kept


def made(root: Path, method: str, seed: int, result: dict[str, Any] | None, **choices: Any) -> None:
    """A run of Table 2 as if it had been trained."""
    resolved = resolve({"method": method, "seed": seed, "device": "cpu", "precision": "float32"})
    content = resolved.model_dump(mode="json", exclude_none=True)
    content.update(task="patchcamelyon", model="resnet56", epochs=50, batch_size=256, **choices)
    content["data"] = {"augment": "none", "layout": "h5"}
    one = Run.at(root, type(resolved).model_validate(content))
    one.announce()
    if result is not None:
        one.finish({"seconds": 1.0, **result})


def _keys(root: Path) -> set[str]:
    return {hashlib.sha256(run.spec.data_key.encode()).hexdigest()[:8] for run in find(root)}


def test_half_a_grid_failures_and_what_has_no_counterpart(
    tmp_path: Path, nowhere: None, capsys: pytest.CaptureFixture[str]
) -> None:
    Record("paper", {"table2": "patchcamelyon"}).write(tmp_path)
    for seed, accuracy in ((0, 0.90), (1, 0.92)):
        metrics = {"test_accuracy": accuracy, "train_loss": 0.1}
        made(tmp_path, "baseline", seed, {"status": "done", "metrics": metrics})
        made(tmp_path, "unit_norm", seed, {"status": "done", "metrics": metrics})
    made(tmp_path, "znorm", 0, {"status": "diverged", "metrics": {}, "diverged_step": 7})
    made(tmp_path, "znorm", 1, {"status": "failed", "metrics": {}, "error": "out of memory"})
    made(tmp_path, "gradient_clipping", 0, None)
    record = Record.read(tmp_path)
    assert record is not None
    (table,) = paper_tables(record, gather(tmp_path, find(tmp_path)))
    assert [block.model for block in table.blocks] == list(TARGETS["table2"].models)
    first, second, third = table.blocks
    assert second.table is third.table is None
    lines = {line.label: line for line in first.lines}
    accuracies, losses = lines["Baseline"].cells
    published = {row["value"] for row in published_rows() if row["table"] == "2"}
    assert "0.88" in published
    assert (accuracies.published, accuracies.difference) == ("88.0", "+3.00")
    assert accuracies.here is not None
    assert accuracies.here.mean == "91.00"
    assert (losses.published, losses.difference) == ("0.2349", "−0.1349")
    assert [value.text for value in lines["ZNorm"].troubles] == [
        "diverged at step 7",
        "failed: out of memory",
    ]
    assert [value.text for value in lines["Gradient clipping"].troubles] == ["waiting"]
    # Trained here, and not in the paper; in the paper, and not trained here.
    assert lines["Unit norm"].cells[0].published is None
    assert lines["Weight decay 1e-3"].cells[0].here is None
    assert lines["Weight decay 1e-3"].cells[0].published is not None
    assert run(["report", str(tmp_path)]) == 0
    text = (tmp_path / "report.html").read_text()
    assert "Scale paper: the paper&#39;s settings" in text
    assert "Not a result" not in text
    assert text.count("not trained here") == 2
    assert "diverged at step 7" in text
    # What is known of the images stands beside the table, too.
    (card,) = [tmp_path / "patchcamelyon" / f"data__{key}.json" for key in _keys(tmp_path)]
    card.write_text('{"classes": [], "images": {}, "notes": ["Kaggle edition: no test part."]}')
    assert run(["report", str(tmp_path)]) == 0
    first = (tmp_path / "report.html").read_text().partition('<section id="runs-1">')[0]
    assert "Kaggle edition: no test part." in first
    assert len(Cells(text).found) == 36


@pytest.mark.slow
def test_figure_2_shows_the_mean_over_methods_of_the_seed_that_most_have(
    tmp_path: Path, nowhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared: dict[str, Any] = {"task": "phantom", "limit": 8, "epochs": 1, "batch_size": 4}
    shared |= {"device": "cpu", "precision": "float32", "out": tmp_path}
    lab.compare(methods=["baseline"], seeds=1, **shared)
    runs = lab.compare(methods=["baseline", "znorm"], seeds=[3], **shared)
    tables = gather(tmp_path, find(tmp_path))
    dataset = tasks.load("phantom", runs[0].spec.data)
    # Counts by hand: the first method is best on the first slice, the mean on the last.
    present = [name for name, there in zip(*_targets(runs[0]), strict=True) if there]
    for one, scores in zip(runs, ([0.9, 0.1, 0.5, 0.6], [0.0, 0.2, 0.5, 0.8]), strict=True):
        cases = one.cases()
        assert cases is not None
        rows = cases.rows()
        for name, score in zip(present, scores, strict=True):
            row = next(row for row in rows if row["name"] == name)
            row.update(tp=round(1000 * score), fp=0, fn=2000 - 2 * round(1000 * score))
        one.save_cases(type(cases).from_rows(rows))
    drawn: list[Any] = []
    monkeypatch.setattr(figures, "draw_cases", lambda cases, **_: drawn.extend(cases) or "svg")
    figure = figures.mask_figure(tables[0], dataset)
    assert figure is not None
    assert figure.caption.startswith("Seed 3.")
    assert [one.title for one in drawn] == [
        f"best\n{present[3]}",
        f"median\n{present[0]}",
        f"worst\n{present[1]}",
    ]
    assert list(drawn[0].predictions) == ["Baseline", "ZNorm"]
    # Nets are not asked about other images than they were tested on, where that is known.
    fewer = replace(dataset, test=dataset.test.take(torch.arange(1, len(dataset.test))))
    figure = figures.mask_figure(tables[0], fewer)
    assert figure is not None
    assert figure.svg == ""
    assert "the images of phantom that are here now are other ones" in figure.caption
    for one in runs:
        result = one.result
        assert result is not None
        del result["hashes"]["data"]
        one.finish(result)
    # Slices are found by name, whatever stands before them now.
    before = {one.title: one for one in drawn}
    drawn.clear()
    figure = figures.mask_figure(tables[0], fewer)
    assert figure is not None
    for one in drawn:
        assert (one.image == before[one.title].image).all()
    # A method whose weights are gone costs the others nothing.
    (runs[0].folder / "weights.pt").unlink()
    figure = figures.mask_figure(tables[0], dataset)
    assert figure is not None
    assert figure.svg == "svg"
    assert "Baseline is not drawn" in figure.caption


def _targets(run: Run) -> tuple[tuple[str, ...], list[bool]]:
    cases = run.cases()
    assert cases is not None
    return cases.names, cases.target_found.tolist()


def test_the_command_line(
    tmp_path: Path,
    nowhere: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = ["reproduce", "table1", "--models", "resnet56", "--methods", "baseline,znorm"]
    small = ["--limit", "8", "--device", "cpu", "--out", str(tmp_path), "--jobs", "2"]
    asked: list[int] = []
    real = runner.helped
    monkeypatch.setattr(runner, "helped", lambda *a: asked.append(a[1]) or real(a[0], 1, 1, None))
    assert run([*arguments, *small]) == 0
    assert asked == [2]
    out, err = capsys.readouterr()
    assert re.search(r"table1: cifar10 is not here \(.*\); pcam_mini stands in for it", err)
    assert "Table 1 (cifar10)" in out
    assert "Table 1, resnet56: PatchCamelyon mini stands in for CIFAR-10; epochs 1" in out
    assert "<img" in (tmp_path / "report.html").read_text()
    assert run([*arguments, *small, "--no-images"]) == 0
    assert "<img" not in (tmp_path / "report.html").read_text()
    assert run(["report", str(tmp_path)]) == 0
    assert "<img" in (tmp_path / "report.html").read_text()
    assert run(["report", str(tmp_path), "--no-images"]) == 0
    assert "<img" not in (tmp_path / "report.html").read_text()
    one = next(iter(find(tmp_path)))
    held = one.result or {}
    one.finish({**held, "status": "failed", "metrics": {}, "error": "a fault"})
    assert run([*arguments, *small]) == 1
    one.finish(held)
    capsys.readouterr()
    assert "scale smoke: a few steps of each, to see that everything runs; not a result" in out
    assert json.loads((tmp_path / "reproduction.json").read_text())["scale"] == "smoke"
    assert run([*arguments, "--scale", "reduced", "--out", str(tmp_path)]) == 3
    assert "cifar10: no data in" in capsys.readouterr().err
    assert run([*arguments, "--scale", "huge"]) == 2
    assert capsys.readouterr().err.startswith("znorm: unknown scale 'huge'; valid: smoke")


def test_a_plan_trains_nothing(
    tmp_path: Path, nowhere: None, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["reproduce", "table1", "--models", "resnet56", "--seeds", "2", "--plan"]
    assert run([*arguments, "--device", "cpu", "--out", str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    assert "12 of 12" in out
    assert "measuring resnet56 on pcam_mini" in err
    assert not (tmp_path / "out").exists()
    assert run(["compare", "--plan", "--seeds", "1", "--limit", "16", "--device", "cpu"]) == 0
    assert "6 of 6" in capsys.readouterr().out


@pytest.mark.slow
def test_every_model_of_every_target_is_trained_from_nothing(tmp_path: Path, nowhere: None) -> None:
    try:
        runs = lab.reproduce("all", methods="baseline,znorm", out=tmp_path)
        assert {run.status for run in runs} == {"done"}
        models = {name: set(target.models) for name, target in TARGETS.items()}
        assert {run.spec.model for run in runs} == set.union(*models.values())
        assert len(runs) == 2 * (6 + 3 + 2)
        text = (tmp_path / "report.html").read_text()
        assert "not trained here" not in text
        assert len(Cells(text).found) == 162
    finally:
        for weights in tmp_path.rglob("weights.pt"):
            weights.unlink()  # more than a gigabyte
