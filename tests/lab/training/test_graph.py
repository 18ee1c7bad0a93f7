"""When a step is captured and when it is replayed; `tests/gpu` has the graphs themselves."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from lab.kit import PLAIN, Watch
from znorm.lab import tasks
from znorm.lab.spec import RunSpec, resolve
from znorm.lab.training import evaluation, loop
from znorm.lab.training.graph import CapturedWork, Work
from znorm.lab.training.setup import set_up


class Stream:
    def wait_stream(self, other: Any) -> None: ...


def test_a_step_is_captured_once_for_whole_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    class Graph:
        def replay(self) -> None:
            done.append("replay")

    def step(images: Tensor, targets: Tensor) -> tuple[Tensor]:
        done.append(f"step of {len(images)}")
        return (images.sum(),)

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **how: nullcontext())
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: None)
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
    plain = loop.train(spec, dataset, Watch(), [], lambda content: None)
    monkeypatch.setattr(loop, "CapturedWork", Recorded)
    monkeypatch.setattr(loop, "set_up", lambda spec, dataset: set_up(unlike(spec), dataset))
    monkeypatch.setattr(evaluation, "CapturedWork", Recorded)

    def unlike(spec: RunSpec) -> RunSpec:
        return spec.model_copy(update={"cuda_graph": None})

    as_captured = spec.model_copy(update={"cuda_graph": True})
    captured = loop.train(as_captured, dataset, Watch(), [], lambda content: None)
    assert len(forgotten) + 1 == captures
    assert captured.metrics["train_loss"] == pytest.approx(plain.metrics["train_loss"], rel=1e-3)
