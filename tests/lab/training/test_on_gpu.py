"""The loop on a real GPU: the CPU's weights, no waiting, captured steps, resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("pydantic")

from lab.kit import Watch
from waiting import nothing_waits
from znorm import lab
from znorm.lab import models, tasks
from znorm.lab.methods import make_transform
from znorm.lab.optimizers import make_optimizer
from znorm.lab.runs import runner
from znorm.lab.spec import resolve
from znorm.lab.training.checkpoint import Position
from znorm.lab.training.loop import _Loop
from znorm.lab.training.pipeline import Pipeline

pytestmark = pytest.mark.gpu


def loop_of(model: str, device: torch.device, augment: str = "dihedral") -> Any:
    spec = resolve(
        {
            "model": model,
            "method": "znorm",
            "device": device.type,
            "precision": "float32",
            "batch_size": 16,
            "data.limit": 320,
            "data.augment": augment,
            "deterministic": True,
            "cuda_graph": False,  # this optimizer is not capturable
        }
    )
    dataset = tasks.load(spec.task, spec.data)
    torch.manual_seed(0)
    net = models.build(model, channels=3, classes=2, image_size=32).double()
    net = net.to(device=device, memory_format=torch.channels_last)
    optimizer = make_optimizer(
        spec.optimizer, {}, 0.0, make_transform(spec.transform), net, spec.learning_rate
    )
    pipeline = Pipeline(dataset, spec.data.augment, 0, device)
    normalized = pipeline._normalized
    pipeline._normalized = lambda images: normalized(images).double()  # type: ignore[method-assign]
    return _Loop(spec, pipeline, net, optimizer, Position(), Watch(), lambda _: None)


@pytest.mark.parametrize("model", ["resnet20", "resnet56"])
def test_twenty_steps_in_float64_are_those_of_the_cpu(gpu: torch.device, model: str) -> None:
    found = []
    for device in (gpu, torch.device("cpu")):
        loop = loop_of(model, device)
        for _ in range(2):
            list(loop._train_epoch())
            loop.position.epoch, loop.position.step = loop.position.epoch + 1, 0
        loop._read_losses()
        assert len(loop.position.losses) >= 20
        found.append((loop.position.batches, loop.model.state_dict()))
    assert found[0][0] == found[1][0]  # the very same batches
    for key, value in found[0][1].items():
        assert (value.cpu() - found[1][1][key]).abs().max() <= 1e-9, key


def test_an_epoch_waits_for_nothing(gpu: torch.device) -> None:
    loop = loop_of("resnet20", gpu)
    torch.use_deterministic_algorithms(False)
    list(loop._train_epoch())
    loop.position.epoch, loop.position.step = 1, 0
    # What an epoch draws is copied at its start; then nothing waits.
    plan = list(torch.arange(160).split(16))
    made = loop.pipeline.training_batches(0, plan)
    first = next(made)
    loop.step(first.images, first.targets)
    with nothing_waits():
        for batch in made:
            loop.step(batch.images, batch.targets)


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "rmsprop"])
@pytest.mark.parametrize("method", ["baseline", "znorm", "gradient_clipping", "clip_value"])
def test_a_run_of_captured_steps_is_a_run(
    gpu: torch.device, method: str, optimizer: str, tmp_path: Path
) -> None:
    shared: dict[str, Any] = {
        "methods": [method],
        "optimizer": optimizer,
        "lr": 1e-3,
        "seeds": 1,
        "epochs": 2,
        "limit": 200,
        "batch_size": 16,
        "device": "cuda",
        "precision": "float32",
        "schedule": "cosine",
    }
    (plain,) = lab.compare(**shared, cuda_graph=False, out=tmp_path / "plain")
    (captured,) = lab.compare(**shared, out=tmp_path / "captured")
    assert captured.spec.cuda_graph
    assert not plain.spec.cuda_graph
    assert plain.status == captured.status == "done", (plain.result, captured.result)
    assert plain.history[0]["train_loss"] == pytest.approx(
        captured.history[0]["train_loss"], rel=0.05
    )


def test_a_run_that_was_stopped_goes_on_with_the_same_bits(
    gpu: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    shared: dict[str, Any] = {
        "methods": ["znorm"],
        "seeds": 1,
        "epochs": 2,
        "limit": 200,
        "batch_size": 16,
        "device": "cuda",
        "deterministic": True,
    }
    (whole,) = lab.compare(**shared, out=tmp_path / "whole")
    asked = []
    original = runner._Watch.stop_requested

    def stop_requested(self: Any) -> bool:
        asked.append(1)
        return len(asked) == 7 or original(self)

    monkeypatch.setattr(runner._Watch, "stop_requested", stop_requested)
    with pytest.raises(lab.Interrupted):
        lab.compare(**shared, out=tmp_path / "stopped")
    (stopped,) = lab.compare(**shared, out=tmp_path / "stopped")
    assert whole.result["hashes"] == stopped.result["hashes"]  # type: ignore[index]


def test_receipts_of_captured_steps_are_those_of_others(gpu: torch.device, tmp_path: Path) -> None:
    shared: dict[str, Any] = {
        "methods": ["gradient_clipping"],
        "seeds": 1,
        "epochs": 2,
        "limit": 200,
        "batch_size": 16,
        "device": "cuda",
        "precision": "float32",
        "set": {"receipt": True},
    }
    (plain,) = lab.compare(**shared, cuda_graph=False, out=tmp_path / "plain")
    (captured,) = lab.compare(**shared, out=tmp_path / "captured")
    for one, other in zip(plain.history, captured.history, strict=True):
        assert one["receipt"].keys() == other["receipt"].keys()
        for name, fields in one["receipt"].items():
            assert fields["steps"] == other["receipt"][name]["steps"]
    first, second = plain.history[0]["receipt"], captured.history[0]["receipt"]
    for name, fields in first.items():
        assert second[name]["norm_before"] == pytest.approx(fields["norm_before"], rel=0.1)


# The second with dropout, whose random numbers a graph draws on the device.
@pytest.mark.parametrize("model", ["resnet20", "mobilenetv2"])
def test_eight_runs_side_by_side_have_the_bits_of_eight_alone(
    gpu: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    shared: dict[str, Any] = {
        "model": model,
        "methods": ["baseline", "znorm"],
        "seeds": 4,
        "epochs": 2,
        "limit": 200,
        "batch_size": 16,
        "device": "cuda",
        "deterministic": True,
    }
    alone = lab.compare(**shared, out=tmp_path / "alone")
    beside = lab.compare(**shared, jobs=8, out=tmp_path / "beside")
    for one, other in zip(alone, beside, strict=True):
        assert one.result is not None
        assert other.result is not None
        assert one.result["hashes"] == other.result["hashes"]
        assert one.history[-1]["train_loss"] == other.history[-1]["train_loss"]
