"""When a step is captured and when it is replayed; `tests/gpu` has the graphs themselves."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lab.kit import PLAIN, Watch
from znorm.lab import tasks
from znorm.lab.spec import RunSpec, resolve
from znorm.lab.training import evaluation, graph, loop
from znorm.lab.training.graph import CapturedWork, Work
from znorm.lab.training.setup import set_up


class Stream:
    def wait_stream(self, other: Any) -> None: ...


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Streams that are none, and a list of what is told of pools and workspaces."""
    told: list[str] = []
    monkeypatch.setattr(torch.cuda, "Stream", lambda *device: Stream())
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (1, 0))
    monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: None)
    monkeypatch.setattr(
        torch._C, "_cuda_clearCublasWorkspaces", lambda: told.append("cleared"), raising=False
    )
    monkeypatch.setattr(
        torch._C,
        "_cuda_endAllocateToPool",
        lambda device, pool: told.append(f"ended {pool}"),
        raising=False,
    )
    monkeypatch.setattr(graph, "_warm_up_stream", lambda device: Stream())
    return told


def test_a_capture_has_workspaces_of_its_own_and_gives_its_pool_back_if_it_fails(
    without_gpu: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Graph:
        def replay(self) -> None: ...

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **how: nullcontext())

    def right(images: Tensor, targets: Tensor) -> tuple[Tensor]:
        without_gpu.append("work")
        return (images,)

    def wrong(images: Tensor, targets: Tensor) -> tuple[Tensor]:
        raise RuntimeError("not within a capture")

    batch = torch.zeros(2), torch.zeros(2)
    captured = CapturedWork(2)
    for _ in range(3):
        captured.take(right, *batch)
    without_gpu.clear()
    captured.take(right, *batch)
    assert without_gpu == ["cleared", "work", "cleared"]
    captured.forget()
    without_gpu.clear()
    with pytest.raises(RuntimeError, match="not within"):
        captured.take(wrong, *batch)
    assert without_gpu == ["cleared", "ended (1, 0)", "cleared"]


def test_a_step_is_captured_once_for_whole_batches(
    without_gpu: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    class Graph:
        def replay(self) -> None:
            done.append("replay")

    def step(images: Tensor, targets: Tensor) -> tuple[Tensor]:
        done.append(f"step of {len(images)}")
        return (images.sum(),)

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **how: nullcontext())
    captured = CapturedWork(4)
    whole, rest = torch.ones(4, 3), torch.ones(2, 3)
    labels = torch.zeros(4)
    captured.take(step, rest, labels[:2])  # a run may go on at an epoch's last batch
    for _ in range(5):
        captured.take(step, whole, labels)
    # Three to warm up, one to capture.
    assert done == ["step of 2"] + ["step of 4"] * 4 + ["replay"] * 2
    done.clear()
    captured.take(step, rest, labels[:2])
    captured.take(step, 2 * whole, labels + 1)
    assert done == ["step of 2", "replay"]
    assert torch.equal(captured._images, 2 * whole)
    assert torch.equal(captured._targets, labels + 1)
    done.clear()
    captured.forget()
    captured.take(step, whole, labels)
    captured.take(step, whole, labels)
    assert done == ["step of 4", "replay", "replay"]


@pytest.mark.parametrize(("optimizer", "captures"), [("adam", 1), ("sgd", 1), ("rmsprop", 3)])
def test_a_learning_rate_that_changes_costs_a_capture_only_where_it_is_no_tensor(
    optimizer: str, captures: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten = []

    class Recorded:
        def __init__(self, size: int) -> None: ...
        def take(self, work: Work, images: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
            return work(images, targets)

        def forget(self) -> None:
            forgotten.append(self)

    choices = {"optimizer": optimizer, "schedule": "cosine", "epochs": 3, "data.limit": 40}
    spec = resolve({**PLAIN, **choices, "batch_size": 16})
    dataset = tasks.load(spec.task, spec.data)
    rate = loop.learning_rate
    with monkeypatch.context() as patched:
        # On the device it is a float32.
        patched.setattr(loop, "learning_rate", lambda *a: float(np.float32(rate(*a))))
        plain = loop.train(spec, dataset, Watch(), [], lambda content: None)
    monkeypatch.setattr(loop, "CapturedWork", Recorded)
    monkeypatch.setattr(loop, "set_up", lambda spec, dataset: set_up(unlike(spec), dataset))
    monkeypatch.setattr(evaluation, "CapturedWork", Recorded)

    def unlike(spec: RunSpec) -> RunSpec:
        return spec.model_copy(update={"cuda_graph": None})

    as_captured = spec.model_copy(update={"cuda_graph": True})
    captured = loop.train(as_captured, dataset, Watch(), [], lambda content: None)
    assert len(forgotten) + 1 == captures
    if optimizer == "rmsprop":  # whose rate is a number, as it was
        plain = loop.train(spec, dataset, Watch(), [], lambda content: None)
    assert captured.metrics["train_loss"] == plain.metrics["train_loss"]
