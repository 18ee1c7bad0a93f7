from __future__ import annotations

import gc
import io
import json
import re
import shutil
import weakref
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from znorm import lab
from znorm.lab import models, tasks
from znorm.lab.datasets import Split
from znorm.lab.reporting.tables import gather
from znorm.lab.reporting.trivial_baseline import trivial_baseline
from znorm.lab.runs import runner
from znorm.lab.runs.folder import Run
from znorm.lab.runs.grid import grid
from znorm.lab.runs.progress import Silent, Terminal
from znorm.lab.runs.survey import find
from znorm.lab.spec import resolve
from znorm.lab.training.memory import is_out_of_memory

SMALL: dict[str, Any] = {
    "epochs": 1,
    "batch_size": 8,
    "limit": 24,
    "device": "cpu",
    "precision": "float32",
}


def snapshot(root: Path) -> dict[str, Any]:
    """Every result below a folder, times aside."""
    results = {}
    for run in find(root):
        result = dict(run.result or {})
        result.pop("seconds", None)
        results[str(run.folder.relative_to(root))] = result
    return results


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    runs = lab.compare(methods=["znorm", "baseline"], seeds=2, out=out, **SMALL)
    assert [(r.spec.seed, r.spec.method, r.status) for r in runs] == [
        (0, "znorm", "done"),
        (0, "baseline", "done"),
        (1, "znorm", "done"),
        (1, "baseline", "done"),
    ]
    return out


def test_the_result_holds_what_the_contract_says(compared: Path) -> None:
    for run in find(compared):
        result = json.loads((run.folder / "result.json").read_text())
        assert set(result) == {"status", "metrics", "hashes", "seconds", "threads"}
        hashes = {"data", "initial_weights", "batches", "final_weights", "weights_file"}
        assert set(result["hashes"]) == hashes
        assert {"test_accuracy", "train_loss", "best_validation_accuracy"} <= set(run.metrics)
        assert run.history[-1]["test_accuracy"] == run.metrics["test_accuracy"]


def test_for_one_seed_all_else_is_equal(compared: Path) -> None:
    for key in ("initial_weights", "batches"):
        by_seed = {
            seed: {r.result["hashes"][key] for r in find(compared) if r.spec.seed == seed}  # type: ignore[index]
            for seed in (0, 1)
        }
        assert len(by_seed[0]) == len(by_seed[1]) == 1
        assert by_seed[0] != by_seed[1]


def test_the_same_call_again_trains_nothing(
    compared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(compared)
    monkeypatch.setattr(runner, "train_by_steps", None)
    lab.compare(methods=["znorm", "baseline"], seeds=2, out=compared, **SMALL)
    assert snapshot(compared) == before


def test_one_run_of_a_grid_is_what_run_makes_of_its_specification(
    compared: Path, tmp_path: Path
) -> None:
    first = find(compared)[0]
    content = json.loads((first.folder / "spec.json").read_text())
    again = lab.run(content, out=tmp_path)
    assert again.folder.relative_to(tmp_path) == first.folder.relative_to(compared)
    assert snapshot(tmp_path) == {
        str(first.folder.relative_to(compared)): snapshot(compared)[
            str(first.folder.relative_to(compared))
        ]
    }


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[tuple[str, str]] = []
        self.sources: list[str] = []
        self.current: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        held = dict(attrs)
        if tag == "a" and held.get("href"):
            self.current = held["href"]
        self.sources += [held[key] or "" for key in ("src",) if key in held]

    def handle_data(self, data: str) -> None:
        if self.current is not None:
            self.links.append((self.current, data))
            self.current = None


def test_every_number_of_the_page_stands_in_the_file_it_links_to(compared: Path) -> None:
    page = Page((compared / "report.html").read_text())
    numbers = differences = counts = 0
    for link, text in page.links:
        if link.startswith("#"):
            continue
        if link.endswith("events.jsonl"):
            epochs = [json.loads(line) for line in (compared / link).read_text().splitlines()]
            assert text == "not reached" or int(text) in [entry["epoch"] for entry in epochs]
            numbers += 1
            continue
        if link.endswith("cases.csv"):
            assert (compared / link).parent.name == f"seed-{text}"
            counted = Run.open((compared / link).parent).confusion() or {}
            right = sum(cases for (true, predicted), cases in counted.items() if true == predicted)
            score = json.loads((compared / link).with_name("result.json").read_text())
            share = right / sum(counted.values())
            assert share == pytest.approx(score["metrics"]["test_accuracy"])
            counts += 1
            continue
        result = json.loads((compared / link).read_text())
        shown = float(text.replace("−", "-"))
        if text[0] in "+−":
            seed = (compared / link).parent.name
            (other,) = compared.glob(f"*/*/baseline__*/{seed}/result.json")
            mine, its = (one["metrics"]["test_accuracy"] for one in (result, loaded(other)))
            assert shown == pytest.approx(100 * (mine - its), abs=0.005)
            differences += 1
            continue
        digits = len(text.partition(".")[2])
        candidates = [result.get("seconds", 0.0), *result["metrics"].values()]
        candidates += [100 * value for value in candidates]
        assert any(round(value, digits) == shown for value in candidates), (link, text)
        numbers += 1
    # Two methods, two seeds, eight columns and the epochs; and the floor.
    assert numbers == 2 * 2 * 9 + 1
    # One method against the baseline; and three places where counts are linked to.
    assert (differences, counts) == (2, 2 * 2 * 3)


def loaded(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def test_the_page_is_one_file_that_says_what_it_shows(compared: Path) -> None:
    text = (compared / "report.html").read_text()
    page = Page(text)
    assert page.sources
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert not re.search(r'(?:href|src)="https?:', text.replace("http://www.w3.org", ""))
    assert "Limited to 24 images of each part" in text
    assert "scores are optimistic" in text
    assert "<svg" in text
    assert "currentColor" in text
    assert "width=device-width" in text


def test_mean_and_interval_are_those_of_the_results(compared: Path) -> None:
    text = (compared / "report.html").read_text()
    scores = [100 * r.metrics["test_accuracy"] for r in find(compared) if r.spec.method == "znorm"]
    mean = sum(scores) / 2
    # Two values: s / sqrt(2) = |a - b| / 2, and t = 12.7062.
    half = 12.7062047 * abs(scores[0] - scores[1]) / 2
    assert f"{mean:.2f} ± {half:.2f}" in text


def test_the_difference_pairs_runs_of_one_seed_and_has_the_sign_of_the_gain(
    compared: Path,
) -> None:
    scores = {(r.spec.method, r.spec.seed): r.metrics["test_accuracy"] for r in find(compared)}
    gains = [100 * (scores["znorm", seed] - scores["baseline", seed]) for seed in (0, 1)]
    (table,) = gather(compared, find(compared))
    row = next(row for row in table.rows if row.method == "znorm")
    assert row.difference is not None
    assert row.difference.interval is not None
    assert 100 * row.difference.interval.mean == pytest.approx(sum(gains) / 2)
    assert row.difference.mean[0] == ("−" if sum(gains) < 0 else "+")


def test_the_floor_is_fitted_on_the_training_part_alone(tmp_path: Path) -> None:
    data = tasks.load("pcam_mini", resolve({"data.limit": 60}).data)
    shuffled = Split(data.test.images, 1 - data.test.labels)
    spec = grid(["baseline"], 1, {})[0]
    one = trivial_baseline(tmp_path / "one", spec, data)["metrics"]
    other = trivial_baseline(tmp_path / "two", spec, replace(data, test=shuffled))["metrics"]
    assert one["train_accuracy"] == other["train_accuracy"] > 0.7
    assert one["test_accuracy"] == pytest.approx(1 - other["test_accuracy"])


def test_a_failed_and_a_diverged_run_are_recorded_and_the_grid_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = runner.train_by_steps

    def failing(spec: Any, *rest: Any) -> Any:
        if spec.method == "baseline":
            raise RuntimeError("out of\nmemory")
        return original(spec, *rest)

    monkeypatch.setattr(runner, "train_by_steps", failing)
    runs = lab.compare(
        methods=["baseline", "gradient_centralization"], seeds=1, lr=1e30, out=tmp_path, **SMALL
    )
    assert [run.status for run in runs] == ["failed", "diverged"]
    rows = lab.status(tmp_path)
    assert rows[0]["error"] == "RuntimeError: out of memory"
    assert rows[1]["diverged_step"] == 2
    text = (tmp_path / "report.html").read_text()
    assert "diverged at step 2" in text
    assert "failed: RuntimeError: out of memory" in text


def test_what_fits_is_said_where_memory_does_not_hold_a_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original: Callable[..., Any] = models.build

    def build(*names: Any, **options: Any) -> Any:
        model = original(*names, **options)

        def full(module: Any, inputs: Any) -> None:
            if module.training and len(inputs[0]) > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

        model.register_forward_pre_hook(full)
        return model

    monkeypatch.setattr(models, "build", build)
    options: dict[str, Any] = {**SMALL, "methods": ["znorm"], "seeds": 1, "batch_size": 24}
    for most, advice in (
        (7, "out of memory; a step with --micro-batch 6 fits; OutOfMemoryError: CUDA out of mem"),
        (1, "out of memory, for two images too; take a smaller model or smaller images"),
    ):
        lab.compare(out=tmp_path / str(most), **options)
        (row,) = lab.status(tmp_path / str(most))
        assert row["status"] == "failed"
        assert row["error"].startswith(advice)
    most = 7
    (run,) = lab.compare(out=tmp_path / "pieces", micro_batch=6, **options)
    assert run.status == "done"


@pytest.mark.parametrize(
    ("text", "is_it"),
    [
        ("CUDA error: out of memory", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ...", True),
        ("size mismatch", False),
        ("FIND was unable to find an engine to execute this computation", None),
    ],
)
def test_libraries_say_in_many_ways_that_memory_is_out(text: str, is_it: bool | None) -> None:
    """None: it is, if others take memory."""
    hidden = RuntimeError("capture_end failed")
    hidden.__context__ = RuntimeError(text)
    for error in (RuntimeError(text), hidden):
        assert is_out_of_memory(error) == bool(is_it)
        assert is_out_of_memory(error, beside_others=True) == (is_it is not False)


def test_a_run_that_is_over_is_let_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    original: Callable[..., Any] = models.build
    built: list[Any] = []

    def build(*names: Any, **options: Any) -> Any:
        model = original(*names, **options)
        built.append(weakref.ref(model))
        return model

    monkeypatch.setattr(models, "build", build)
    gc.collect()
    gc.disable()
    try:
        lab.compare(methods=["znorm"], seeds=1, out=tmp_path, **SMALL)
        assert built
        assert all(model() is None for model in built)
    finally:
        gc.enable()


def test_weights_are_there_before_the_result(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A kill between the two costs a training, not what predictions are made with."""
    real, seen = Run.finish, []

    def finish(self: Run, result: dict[str, Any]) -> None:
        seen.append((self.folder / "weights.pt").exists())
        real(self, result)

    monkeypatch.setattr(Run, "finish", finish)
    lab.compare(methods=["znorm"], seeds=1, out=tmp_path, **SMALL)
    assert seen == [True]


def test_a_partial_grid_can_be_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original: Callable[..., Any] = runner.train_by_steps

    def stopping(spec: Any, *rest: Any) -> Any:
        if spec.method == "znorm":
            raise lab.Interrupted
        return original(spec, *rest)

    monkeypatch.setattr(runner, "train_by_steps", stopping)
    with pytest.raises(lab.Interrupted):
        lab.compare(methods=["baseline", "znorm"], seeds=2, out=tmp_path, **SMALL)
    states = [(row["method"], row["seed"], row["status"]) for row in lab.status(tmp_path)]
    assert states == [
        ("baseline", 0, "done"),
        ("baseline", 1, "waiting"),
        ("znorm", 0, "waiting"),
        ("znorm", 1, "waiting"),
    ]
    assert "waiting" in lab.report(tmp_path).read_text()


def test_a_run_that_another_process_holds_is_left_to_it(tmp_path: Path) -> None:
    held = Run.at(tmp_path, grid(["znorm"], 1, _choices())[0])
    with held.claim():
        runs = lab.compare(methods=["znorm"], seeds=1, out=tmp_path, **SMALL)
        assert runs[0].result is None


def _choices() -> dict[str, Any]:
    choices = dict(SMALL)
    choices["data.limit"] = choices.pop("limit")
    return choices


def test_wrong_arguments_are_named_before_anything_is_trained(tmp_path: Path) -> None:
    out = tmp_path / "runs"
    for wrong, message in [
        ({"methods": []}, "methods: give at least one"),
        ({"methods": ["adm"]}, "unknown method 'adm'"),
        ({"seeds": 0}, "seeds: give at least one, found 0"),
        ({"seeds": [-1]}, "expected whole numbers from 0, found -1"),
        ({"set": {"seed": 3}}, "use seeds"),
        ({"set": {"data.limt": 3}}, "did you mean data.limit"),
    ]:
        with pytest.raises(lab.ConfigurationError, match=re.escape(message)):
            lab.compare(out=out, **{**SMALL, **wrong})
    assert not out.exists()


def test_a_run_whose_evaluation_is_not_finite_is_recorded_and_the_grid_goes_on(
    tmp_path: Path,
) -> None:
    # Weights stay finite at this learning rate; the running statistics do not.
    small = {**SMALL, "limit": 32, "batch_size": 64}
    runs = lab.compare(methods=["baseline", "znorm"], seeds=1, lr=3.0, out=tmp_path, **small)
    assert [run.status for run in runs] == ["diverged", "diverged"]
    assert runs[0].result["diverged_step"] == 1  # type: ignore[index]


def test_a_checkpoint_that_is_none_is_named_and_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Run.at(tmp_path, grid(["znorm"], 1, _choices())[0])
    held.announce()
    held.save_checkpoint(b"garbage")
    with pytest.raises(lab.DataError, match=r"checkpoint\.pt: not the state of this run") as caught:
        lab.compare(methods=["znorm"], seeds=1, out=tmp_path, **SMALL)
    assert str(held.folder) in str(caught.value)
    assert held.result is None

    def failing(content: bytes) -> None:
        raise OSError(5, "Input/output error")

    (held.folder / "checkpoint.pt").unlink()
    with monkeypatch.context() as patched:
        patched.setattr(Run, "save_checkpoint", lambda self, content: failing(content))
        with pytest.raises(lab.DataError, match="Input/output error"):
            lab.compare(methods=["znorm"], seeds=1, out=tmp_path, **SMALL)
    assert lab.compare(methods=["znorm"], seeds=1, out=tmp_path, **SMALL)[0].status == "done"


def test_a_run_that_ended_between_the_look_and_the_claim_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (one,) = lab.compare(methods=["znorm"], seeds=1, out=tmp_path, **SMALL)
    before = (one.folder / "result.json").read_bytes()
    looks = iter([None])
    real = Run.result.fget  # type: ignore[attr-defined]
    monkeypatch.setattr(Run, "result", property(lambda self: next(looks, real(self))))
    runner.execute([one], Silent())
    assert (one.folder / "result.json").read_bytes() == before


def test_a_folder_that_is_no_run_is_named_and_the_others_are_trained(tmp_path: Path) -> None:
    folder = tmp_path / "pcam_mini" / "resnet20" / "znorm__deadbeef" / "seed-7"
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text("{}")
    (one,) = lab.compare(methods=["znorm"], seeds=1, out=tmp_path, **SMALL)
    assert one.status == "done"
    rows = {row["status"]: row for row in lab.status(tmp_path)}
    assert set(rows) == {"done", "unreadable"}
    assert "not the specification of a run" in rows["unreadable"]["error"]
    page = (tmp_path / "report.html").read_text()
    assert "znorm__deadbeef/seed-7" in page
    assert "not the specification of a run" in page


def test_a_limit_that_cuts_nothing_is_not_said() -> None:
    whole = tasks.load("pcam_mini", resolve({"data.limit": 5000}).data)
    assert not [note for note in whole.notes if note.startswith("Limited")]


@pytest.mark.parametrize("width", [80, 100, 120])
def test_a_terminal_of_any_width_shows_the_counts_and_the_time_left(
    width: int, tmp_path: Path
) -> None:
    console = Console(width=width, force_terminal=True, file=io.StringIO(), color_system=None)
    display = Terminal(console)
    runs = [Run.at(tmp_path, spec) for spec in grid(None, 1, _choices())]
    display.begin(runs)
    display.run_begins(1, runs[1])
    display.remaining.start -= 100
    display.step(runs[1].spec, 0, 1, 2)
    display.epoch(runs[1].spec, {"epoch": 1, "train_loss": 0.5, "validation_accuracy": 0.75})
    with console.capture() as capture:
        console.print(display.progress)
    display.end()
    text = capture.get()
    assert "0/6" in text
    assert "1/1" in text
    assert "left" in text
    assert "loss 0.5" in text


def test_two_definitions_of_one_method_are_never_one_row(tmp_path: Path) -> None:
    one = {"name": "mine", "transform": ["ZNorm"]}
    two = {"name": "mine", "transform": [{"ClipNorm": {"threshold": 1e-3}}]}
    with pytest.raises(lab.ConfigurationError, match="methods: mine is there twice and differs"):
        lab.compare(methods=[one, two], seeds=1, out=tmp_path, **SMALL)
    for method in (one, two):
        lab.compare(methods=["baseline", method], seeds=1, out=tmp_path, **SMALL)
    (table,) = gather(tmp_path, find(tmp_path))
    assert [row.label[:6] for row in table.rows] == ["Baseli", "mine (", "mine ("]
    assert all(len(row.cells[0].values) == 1 for row in table.rows)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_a_method_with_a_decay_stands_in_the_same_table(tmp_path: Path, optimizer: str) -> None:
    lab.compare(
        methods=["baseline", "weight_decay_1e-3"],
        seeds=1,
        optimizer=optimizer,
        out=tmp_path,
        **SMALL,
    )
    (table,) = gather(tmp_path, find(tmp_path))
    assert table.rows[1].difference is not None


def test_results_are_shown_though_their_images_are_gone(
    compared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(name: str, data: Any) -> Any:
        raise lab.DataError("pcam_mini: no data in /nowhere")

    monkeypatch.setattr(tasks, "load", gone)
    copy = tmp_path / "copy"
    shutil.copytree(compared, copy)
    text = lab.report(copy).read_text()
    # What was known of them is kept: a part of a set never passes for the whole.
    assert "Limited to 24 images of each part" in text
    assert "24 (12 no tumour, 12 tumour)" in text
    assert "<img" not in text
    assert "Baseline" in text
    (card,) = copy.glob("pcam_mini/data__*.json")
    card.unlink()
    text = lab.report(copy).read_text()
    assert "The images are not here: pcam_mini: no data in /nowhere" in text
    assert "Baseline" in text


def test_a_model_of_the_users_own_that_does_not_fit_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_nets.py").write_text(
        "from torch import nn\n"
        "def mask(channels, classes, image_size): return nn.Conv2d(channels, classes, 1)\n"
        "def pooled(channels, classes, image_size):\n"
        "    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(),\n"
        "                         nn.Linear(16 * channels, classes))\n"
    )
    out = tmp_path / "runs"
    with pytest.raises(lab.ConfigurationError, match=r"needs outputs of shape \(2, 2\)"):
        lab.compare(methods=["znorm"], seeds=1, model="own_nets:mask", out=out, **SMALL)
    assert not out.exists()
    (one,) = lab.compare(methods=["znorm"], seeds=1, model="own_nets:pooled", out=out, **SMALL)
    assert one.status == "done"


def test_workers_are_checked_before_anything_is_written(tmp_path: Path) -> None:
    for wrong in (-1, "abc", 1.5):
        with pytest.raises(lab.ConfigurationError, match="workers: expected a whole number"):
            lab.compare(methods=["znorm"], seeds=1, workers=wrong, out=tmp_path / "r", **SMALL)
    assert not (tmp_path / "r").exists()
