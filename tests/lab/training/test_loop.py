"""The loop against a plain one written out here, and against itself when it is stopped."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from znorm.lab import models, tasks
from znorm.lab.datasets import Dataset, Part
from znorm.lab.errors import Interrupted
from znorm.lab.methods import METHODS
from znorm.lab.spec import RunSpec, resolve
from znorm.lab.training import loop
from znorm.lab.training.checkpoint import hash_weights
from znorm.lab.training.loop import Outcome, train
from znorm.lab.training.sampler import augment_, batches


class Watch:
    """Records what it is told; asks to stop after so many steps."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.steps = 0
        self.entries: list[dict[str, Any]] = []
        self.stop_after = stop_after

    def step(self, epoch: int, step: int, steps: int) -> None:
        self.steps += 1

    def epoch(self, entry: dict[str, Any]) -> None:
        self.entries.append(entry)

    def stop_requested(self) -> bool:
        return self.stop_after is not None and self.steps >= self.stop_after


def spec(**choices: Any) -> RunSpec:
    given = {
        "method": "znorm",
        "epochs": 2,
        "batch_size": 16,
        "data.limit": 56,
        "device": "cpu",
        "precision": "float32",
    }
    return resolve({**given, **choices})


def data(of: RunSpec) -> Dataset:
    return tasks.load(of.task, validation=of.data.validation, limit=of.data.limit)


def run(
    of: RunSpec, watch: Watch | None = None, saved: bytes | None = None
) -> tuple[Outcome, list[bytes]]:
    checkpoints: list[bytes] = []
    outcome = train(of, data(of), watch or Watch(), saved, checkpoints.append)
    return outcome, checkpoints


def without_times(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != "seconds"}


@pytest.mark.parametrize("method", ["baseline", "znorm", "weight_decay_1e-3", "gradient_clipping"])
def test_weights_equal_those_of_a_plain_loop_to_the_bit(method: str) -> None:
    of = spec(method=method)
    outcome, _ = run(of)

    dataset = data(of)
    torch.manual_seed(of.seed)
    model = models.build("resnet20", channels=3, classes=2, image_size=32)
    model = model.to(memory_format=torch.channels_last)
    decay = METHODS[method].weight_decay
    optimizer: torch.optim.Optimizer
    if decay:
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=decay, fused=True)
    else:
        optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    transform = METHODS[method].transform
    if transform is not None:
        import znorm

        znorm.attach(optimizer, transform, model=model)
    pixels = dataset.train.images.numpy().astype(np.float64)
    mean = torch.tensor(pixels.mean((0, 2, 3)), dtype=torch.float32)[:, None, None]
    std = torch.tensor(pixels.std((0, 2, 3)), dtype=torch.float32)[:, None, None]
    for epoch in range(of.epochs):
        losses = []
        for index in batches(of.seed, epoch, len(dataset.train), of.batch_size):
            images = dataset.train.images[index]
            augment_(images, "dihedral", of.seed, epoch, index)
            x = (images.float() - mean) * (1 / std)
            x = x.contiguous(memory_format=torch.channels_last)
            model.train()
            loss = F.cross_entropy(model(x), dataset.train.labels[index])
            model.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert outcome.hashes["final_weights"] == hash_weights(model)
    assert outcome.metrics["train_loss"] == pytest.approx(np.mean(losses), rel=1e-12)

    model.eval()
    with torch.no_grad():
        x = (dataset.test.images.float() - mean) * (1 / std)
        logits = model(x.contiguous(memory_format=torch.channels_last))
    hits = (logits.argmax(1) == dataset.test.labels).double().mean()
    assert outcome.metrics["test_accuracy"] == pytest.approx(float(hits))


@pytest.mark.parametrize("stop_after", [1, 3, 4, 5, 7])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_that_was_stopped_ends_with_the_same_bits(stop_after: int, precision: str) -> None:
    of = spec(precision=precision)
    watch = Watch()
    whole, _ = run(of, watch)
    stopped = Watch(stop_after)
    checkpoints: list[bytes] = []
    with pytest.raises(Interrupted):
        train(of, data(of), stopped, None, checkpoints.append)
    torch.manual_seed(12345)  # what another process would start with
    resumed_watch = Watch()
    resumed, _ = run(of, resumed_watch, checkpoints[-1])
    assert resumed.hashes == whole.hashes
    assert resumed.metrics == whole.metrics
    assert list(map(without_times, resumed_watch.entries)) == list(
        map(without_times, watch.entries)
    )
    # 56 images in batches of 16 are 4 steps an epoch: none is done twice.
    assert stopped.steps + resumed_watch.steps == watch.steps == 8


def test_checkpoints_are_also_made_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    of = spec()
    _, sparse = run(of)
    assert len(sparse) == 2
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    whole, dense = run(of)
    assert len(dense) == 8 + 2
    for saved in dense:
        assert run(of, saved=saved)[0].hashes == whole.hashes


def test_methods_share_initial_weights_and_batches_and_seeds_do_not() -> None:
    outcomes = {
        (method, seed): run(spec(method=method, seed=seed, epochs=1))[0].hashes
        for method in ("baseline", "znorm", "weight_decay_1e-3")
        for seed in (0, 1)
    }
    for key in ("initial_weights", "batches"):
        for seed in (0, 1):
            assert len({outcomes[m, s][key] for m, s in outcomes if s == seed}) == 1, key
        assert outcomes["baseline", 0][key] != outcomes["baseline", 1][key]
    assert len({hashes["final_weights"] for hashes in outcomes.values()}) == 6


def test_the_hash_of_batches_tells_augmentation_and_order_apart() -> None:
    plain = run(spec(epochs=1, **{"data.augment": "none"}))[0].hashes["batches"]
    assert plain != run(spec(epochs=1))[0].hashes["batches"]


@pytest.mark.parametrize("learning_rate", [1e30])
def test_a_run_that_diverges_says_at_which_step(learning_rate: float) -> None:
    watch = Watch()
    outcome, _ = run(spec(learning_rate=learning_rate, method="baseline"), watch)
    assert outcome.status == "diverged"
    assert outcome.metrics == {}
    # The first step moves the weights out of float32's range; the second loss shows it.
    assert outcome.diverged_step == 2
    assert watch.entries == []


def test_weights_that_are_not_finite_count_as_diverged(monkeypatch: pytest.MonkeyPatch) -> None:
    original = torch.optim.Adam.step
    calls = 0

    def poisoned(self: torch.optim.Adam, closure: Any = None) -> Any:
        nonlocal calls
        calls += 1
        result = original(self, closure)
        if calls == 4:
            with torch.no_grad():
                next(iter(self.param_groups[0]["params"])).fill_(torch.nan)
        return result

    monkeypatch.setattr("znorm.optim.Adam.step", poisoned, raising=False)
    outcome, _ = run(spec())
    assert (outcome.status, outcome.diverged_step) == ("diverged", 4)


def test_the_best_epoch_is_chosen_on_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([(0.9, 0.2), (0.5, 0.8), (0.9, 0.7)])

    def evaluate(self: Any, name: str, part: Part) -> dict[str, float]:
        if name == "validation":
            self.pair = next(scores)
        return {f"{name}_accuracy": self.pair[name == "test"], f"{name}_loss": 0.0}

    monkeypatch.setattr(loop._Loop, "_evaluate", evaluate)
    metrics = run(spec(epochs=3))[0].metrics
    assert metrics["test_accuracy"] == 0.7
    assert metrics["best_validation_epoch"] == 1
    assert metrics["best_validation_test_accuracy"] == 0.2


def test_without_a_validation_part_there_are_no_validation_scores() -> None:
    metrics = run(spec(epochs=1, **{"data.validation": 0.0}))[0].metrics
    assert not [key for key in metrics if "validation" in key]
    assert "test_accuracy" in metrics


def test_the_setting_of_deterministic_algorithms_is_put_back() -> None:
    assert not torch.are_deterministic_algorithms_enabled()
    run(spec(epochs=1, deterministic=True))
    assert not torch.are_deterministic_algorithms_enabled()
