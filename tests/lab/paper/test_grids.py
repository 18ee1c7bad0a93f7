"""The grids against the settings that the paper states, written out here."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from znorm import lab
from znorm.lab.methods import PUBLISHED
from znorm.lab.options import ReproduceOptions
from znorm.lab.paper import grids
from znorm.lab.paper.grids import SCALES, TARGETS, deviations, settings
from znorm.lab.paper.published import published
from znorm.lab.paper.record import Record
from znorm.lab.paper.reproduce import planned
from znorm.lab.spec import RunSpec, resolve
from znorm.lab.tasks import TASKS

# Table, models, batch, epochs, learning rate, schedule: section 5 of the paper.
STATED: dict[str, Any] = {
    "table1": ("cifar10", 256, 100, 1e-3, "constant"),
    "table2": ("patchcamelyon", 256, 50, 1e-3, "constant"),
    "table3": ("lgg_mri", 128, 50, 1e-2, "multistep:30,35,40,45"),
}
MODELS = {
    "table1": ["resnet56", "resnet101", "resnet152", "densenet121", "densenet169", "mobilenetv2"],
    "table2": ["resnet56", "resnet101", "resnet152"],
    "table3": ["resnet50_unet", "unetplusplus", "attention_unet"],
}


def planned_by(target: str, **options: Any) -> tuple[list[RunSpec], Record]:
    return planned(ReproduceOptions(target, **options))


def as_if_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tasks be resolved as where their files are whole."""
    for task in ("cifar10", "patchcamelyon", "lgg_mri"):
        resolved = {} if task == "lgg_mri" else {"validation": 0.1}
        data = replace(TASKS[task].data, resolve=lambda keys, own=resolved: {**own, **keys})
        monkeypatch.setitem(TASKS, task, replace(TASKS[task], data=data))


@pytest.mark.parametrize("target", STATED)
def test_scale_paper_is_what_the_paper_states(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    as_if_here(monkeypatch)
    specs, record = planned_by(target, scale="paper", seeds=2, device="cpu")
    task, batch, epochs, rate, schedule = STATED[target]
    assert record.tasks == {target: task}
    for spec in specs:
        assert (spec.task, spec.batch_size, spec.epochs) == (task, batch, epochs)
        assert (spec.learning_rate, spec.schedule, spec.optimizer) == (rate, schedule, "adam")
        assert (spec.data.augment, spec.data.limit, spec.micro_batch) == ("none", None, None)
        assert deviations(spec, task) == []
    # Seeds outermost, then models, methods side by side.
    expected = [(s, model, m) for s in (0, 1) for model in MODELS[target] for m in PUBLISHED]
    assert [(spec.seed, spec.model, spec.method) for spec in specs] == expected
    cells = {(spec.task, spec.model, spec.method) for spec in specs}
    assert cells == {key[:3] for key in published() if key[0] == task}


def test_the_published_numbers_are_all_there() -> None:
    content = resources.files("znorm.lab.paper").joinpath("published.csv").read_bytes()
    assert hashlib.sha256(content).hexdigest() == (
        "c49ce3a4f08bd51f455f00973532698595990f2338855aa5cb35e7934b256ef4"
    )
    numbers = published()
    assert len(numbers) == 162
    # Six methods; six and three models with two metrics, three with three.
    assert 6 * (6 * 2 + 3 * 2 + 3 * 3) == 162
    assert numbers["lgg_mri", "unetplusplus", "gradient_centralization", "test_f1"] == 0.901
    assert numbers["lgg_mri", "unetplusplus", "znorm", "test_hausdorff"] == 2.840


def test_the_reduced_scale() -> None:
    """Pinned: its runs are found again by their settings."""
    assert SCALES["reduced"].choices == {
        "cifar10": {"epochs": 10, "batch_size": 64, "data.limit": 10_000},
        "patchcamelyon": {"epochs": 10, "batch_size": 32, "data.limit": 10_000},
        "lgg_mri": {"epochs": 10, "batch_size": 8, "data.limit": 600},
    }
    assert (SCALES["reduced"].seeds, SCALES["paper"].seeds, SCALES["smoke"].seeds) == (3, 3, 1)


def test_milestones_keep_their_place_in_a_shorter_run() -> None:
    reduced = settings("lgg_mri", SCALES["reduced"], {})
    assert (reduced["epochs"], reduced["schedule"]) == (10, "multistep:6,7,8,9")
    assert settings("lgg_mri", SCALES["reduced"], {"epochs": 25})["schedule"] == (
        "multistep:15,18,20,22"
    )
    assert settings("lgg_mri", SCALES["smoke"], {})["schedule"] == "constant"
    assert settings("lgg_mri", SCALES["reduced"], {"schedule": "cosine"})["schedule"] == "cosine"
    assert "schedule" not in settings("lgg_mri", SCALES["paper"], {})


def test_what_differs_from_the_paper_is_told() -> None:
    choices = {"task": "phantom", "epochs": 10, "schedule": "multistep:6,7,8,9", "device": "cpu"}
    spec = resolve({**choices, "data.limit": 6, "micro_batch": 4, "learning_rate": 1e-2})
    assert deviations(spec, "lgg_mri") == [
        "Phantom (synthetic) stands in for LGG brain MRI",
        "epochs 10, not 50",
        "batches of 16, not 128",
        "at most 6 images of each part",
        "batches in pieces of 4",
    ]
    cosine = resolve({**choices, "schedule": "cosine", "loss": "dice_cross_entropy"})
    told = deviations(cosine, "lgg_mri")
    assert "schedule cosine, not multistep:30,35,40,45" in told
    assert "learning rate 0.001, not 0.01" in told
    assert "loss dice_cross_entropy, not tversky" in told
    # Milestones of a longer run, which this one never reaches.
    late = resolve({**choices, "schedule": "multistep:30,35,40,45"})
    assert any(text.startswith("schedule multistep:30") for text in deviations(late, "lgg_mri"))
    dihedral = resolve({"optimizer": "sgd", "device": "cpu"})
    told = deviations(dihedral, "cifar10")
    assert {"augmentation dihedral, not none", "optimizer sgd, not adam"} <= set(told)
    wide = resolve({"model": {"name": "resnet101", "stem": "cifar"}, "device": "cpu"})
    assert "stem cifar" in deviations(wide, "cifar10")


@pytest.mark.parametrize("scale", ["paper", "reduced"])
@pytest.mark.parametrize(("target", "task"), [("table1", "cifar10"), ("all", "cifar10")])
def test_missing_images_are_an_error_where_results_are_asked_for(
    scale: str, target: str, task: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ZNORM_DATA_DIR", str(tmp_path))
    with pytest.raises(lab.MissingDataError, match=f"{task}: no data in .* znorm data get"):
        planned_by(target, scale=scale)


def test_built_in_tasks_stand_in_at_scale_smoke_and_share_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ZNORM_DATA_DIR", str(tmp_path))
    parts = {"data": {"train": "1", "limit": 12}}
    specs, record = planned_by("all", device="cpu", set=parts)
    dotted = {"data.train": "1", "data.limit": 12}
    assert planned_by("all", device="cpu", set=dotted) == (specs, record)
    assert {spec.data.limit for spec in specs} == {12}
    assert record.tasks == {
        "table1": "pcam_mini",
        "table2": "pcam_mini",
        "table3": "phantom",
        "figure2": "phantom",
        "gradients": "pcam_mini",
    }
    assert {(spec.task, spec.data.augment) for spec in specs} == {
        ("pcam_mini", "none"),
        ("phantom", "none"),
    }
    assert {spec.learning_rate for spec in specs if spec.task == "phantom"} == {1e-2}
    # Table 2's three models are among Table 1's six, Figure 2 is of Table 3's runs.
    assert len(specs) == 6 * 6 + 3 * 6 + 2 * 2
    assert [spec.model for spec in specs if spec.receipt] == ["plain56"] * 2 + ["resnet56"] * 2


def test_files_that_are_wrong_are_no_reason_to_let_another_task_stand_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "lgg" / "kaggle_3m" / "TCGA_AA_0001_20000101"
    folder.mkdir(parents=True)
    (folder / f"{folder.name}_1.tif").write_bytes(b"")
    monkeypatch.setenv("ZNORM_DATA_DIR", str(tmp_path))
    with pytest.raises(lab.DataError, match="has no mask"):
        planned_by("table3")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": "table4"}, "unknown target 'table4'; did you mean table"),
        ({"target": "table1", "scale": "papre"}, "unknown scale 'papre'; did you mean paper"),
        ({"target": "table1", "models": "resnet5"}, "unknown model of table1 'resnet5'"),
        ({"target": "table3", "models": "resnet56"}, "unknown model of table3 'resnet56'"),
        ({"target": "table1", "methods": "zorm"}, "unknown method 'zorm'"),
        ({"target": "table1", "models": ","}, "models: give at least one"),
        ({"target": "gradients", "methods": ""}, "methods: give at least one"),
        ({"target": "figure2", "seeds": 0}, "seeds: give at least one"),
        ({"target": "table1", "set": {"model": "resnet20"}}, "set: model is what a target fixes"),
        ({"target": "table1", "set": {"receipt": True}}, "set: receipt is what a target fixes"),
        ({"target": "table1", "epochs": "abc"}, "epochs: .* found 'abc'"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(lab.ConfigurationError, match=message):
        planned_by(**arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 3}, "epochs 3, not 100"),
        ({"batch_size": 8}, "batches of 8, not 256"),
        ({"limit": 3}, "at most 3 images of each part"),
        ({"set": {"data": {"limit": 3}}}, "at most 3 images of each part"),
        ({"set": {"data.augment": "flip"}}, "augmentation flip, not none"),
        ({"set": {"learning_rate": 0.1}}, "learning rate 0.1, not 0.001"),
        ({"set": {"schedule": "cosine"}}, "schedule cosine, not constant"),
        ({"set": {"optimizer": "sgd"}}, "optimizer sgd, not adam"),
        ({"set": {"optimizer_options.eps": 1e-3}}, "adam's eps 0.001"),
    ],
)
def test_nothing_that_the_paper_states_is_changed_at_its_scale(
    changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_if_here(monkeypatch)
    with pytest.raises(lab.ConfigurationError, match=f"scale paper .*, found {message}; scale"):
        planned_by("table1", scale="paper", device="cpu", **changes)
    if "limit" not in str(changes):  # what it does not state may be chosen
        left_open = {"micro_batch": 64, "set": {"model_options.stem": "cifar"}}
        specs, _ = planned_by(
            "table1", scale="paper", models="resnet101", device="cpu", **left_open
        )
        assert deviations(specs[0], "cifar10") == ["batches in pieces of 64", "stem cifar"]


def test_one_seed_is_enough_for_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    as_if_here(monkeypatch)
    specs, _ = planned_by("gradients", scale="reduced", seeds=[4, 5], device="cpu")
    assert {spec.seed for spec in specs} == {4}
    assert all(target.models for target in TARGETS.values())
    assert grids.SCALES["smoke"].result is False
