"""What a run takes where the user leaves it open: precision, captures, batches; and the GPUs."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import znorm
from znorm.lab import device, models, tasks
from znorm.lab.runs import parallel, runner
from znorm.lab.runs.folder import Run
from znorm.lab.runs.progress import Silent
from znorm.lab.spec import resolve
from znorm.lab.training.pipeline import Pipeline


@pytest.mark.parametrize("name", models.MODELS)
@pytest.mark.parametrize("instructions", [True, False])
def test_auto_is_bfloat16_for_dense_convolutions_where_the_cpu_has_it(
    name: str, instructions: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "_cpu_has_bfloat16", lambda: instructions)
    net = models.build(name, channels=3, classes=2, image_size=64)
    grouped = any(isinstance(m, nn.Conv2d) and m.groups > 1 for m in net.modules())
    found = device.resolve_precision("auto", "cpu", name)
    assert found == ("bfloat16" if instructions and not grouped else "float32")


def test_models_of_other_libraries_take_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_cpu_has_bfloat16", lambda: True)
    assert device.resolve_precision("auto", "cpu", "torchvision:resnet18") == "float32"
    assert device.resolve_precision("bfloat16", "cpu", "torchvision:resnet18") == "bfloat16"


def test_what_is_asked_for_is_taken() -> None:
    assert device.resolve_precision("float32", "cpu", "resnet20") == "float32"


@pytest.fixture
def gpu_of_the_imagination(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "is_there", lambda name: True)


ON_GPU = {"device": "cuda", "precision": "float32"}


@pytest.mark.parametrize(
    ("choices", "captured", "because"),
    [
        ({}, True, None),
        ({"optimizer": "sgd", "method": "gradient_clipping"}, True, None),
        ({"receipt": True}, True, None),
        ({"cuda_graph": False}, None, None),
        ({"device": "cpu"}, None, None),
        ({"optimizer": "torch.optim.NAdam"}, None, "torch.optim.NAdam"),
        ({"optimizer": "torch.optim.NAdam", "cuda_graph": True}, True, "torch.optim.NAdam"),
        ({"model": "timm:resnet18"}, None, "timm:resnet18"),
        (
            {"method": "own", "transform": [{"test_methods:Doubled": {}}]},
            None,
            "test_methods:Doubled",
        ),
    ],
)
def test_steps_on_a_gpu_are_captured_where_it_is_known_to_be_right(
    gpu_of_the_imagination: None,
    monkeypatch: pytest.MonkeyPatch,
    choices: dict[str, Any],
    captured: bool | None,
    because: str | None,
) -> None:
    class Doubled(znorm.transforms.Transform):
        pass

    monkeypatch.setitem(sys.modules, "test_methods", SimpleNamespace(Doubled=Doubled))  # type: ignore[arg-type]
    spec = resolve({**ON_GPU, **choices})
    assert spec.cuda_graph is captured
    reason = device.why_not_captured(spec.model, spec.optimizer, spec.transform)
    expected = because and f"it is not known whether {because} waits for the GPU within a step"
    assert reason == expected


def test_what_is_not_captured_is_said_once(gpu_of_the_imagination: None, tmp_path: Path) -> None:
    specs = [
        resolve({**ON_GPU, "optimizer": name, "seed": seed})
        for seed in (0, 1)
        for name in ("torch.optim.NAdam", "adam")
    ]
    notes: list[str] = []

    class Display(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    runner._tell_what_is_not_captured([Run.at(tmp_path, spec) for spec in specs], Display())
    assert notes == [
        "resnet20 baseline: steps are not captured in a CUDA graph: it is not known whether "
        "torch.optim.NAdam waits for the GPU within a step; --cuda-graph captures them"
    ]


@pytest.mark.parametrize(
    ("where", "gpus", "jobs", "expected"),
    [
        ("cpu", 0, 3, (3, 1)),
        ("cuda", 1, 8, (1, 8)),
        ("cuda", 1, 1, (1, 1)),
        ("cuda", 4, 8, (4, 2)),
        ("cuda", 4, 6, (4, 2)),
        ("cuda", 4, 3, (3, 1)),
    ],
)
def test_jobs_are_processes_on_a_cpu_and_turns_on_a_gpu(
    gpu_of_the_imagination: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    where: str,
    gpus: int,
    jobs: int,
    expected: tuple[int, int],
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    runs = [Run.at(tmp_path, resolve({**ON_GPU, "device": where}))]
    assert runner._division(runs, jobs) == expected


def test_each_process_sees_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert parallel._sees_gpu(2)["CUDA_VISIBLE_DEVICES"] == "2"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, 7,GPU-3")
    assert parallel._sees_gpu(1)["CUDA_VISIBLE_DEVICES"] == "7"
    assert parallel._sees_gpu(2)["CUDA_VISIBLE_DEVICES"] == "GPU-3"


@pytest.mark.parametrize(
    ("where", "micro_batch", "expected"),
    [
        ("cpu", None, 256),
        ("cpu", 4, 256),
        ("cuda", None, 2048),
        ("cuda", 64, 512),
        ("cuda", 2, 256),
    ],
)
def test_a_gpu_evaluates_in_large_batches(
    where: str, micro_batch: int | None, expected: int
) -> None:
    spec = resolve({"data.limit": 8})
    dataset = tasks.load(spec.task, spec.data)
    pipeline = Pipeline(dataset, "none", 0, torch.device("cpu"), micro_batch=micro_batch)
    pipeline.device = SimpleNamespace(type=where)  # type: ignore[assignment]
    assert pipeline.evaluation_size == expected
