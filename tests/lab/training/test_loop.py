"""The loop against a plain one written out here, and against itself when it is stopped."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import znorm
from lab.kit import PLAIN, Watch
from znorm.lab import models, tasks
from znorm.lab.datasets import Dataset, Split
from znorm.lab.datasets.augmentation import augment_
from znorm.lab.errors import ConfigurationError, Interrupted
from znorm.lab.methods import METHODS, make_transform
from znorm.lab.spec import RunSpec, resolve
from znorm.lab.training import loop
from znorm.lab.training.checkpoint import hash_weights
from znorm.lab.training.loop import Outcome, train
from znorm.lab.training.pipeline import Pipeline
from znorm.lab.training.sampler import batches


def spec(**choices: Any) -> RunSpec:
    small = {"method": "znorm", "epochs": 2, "batch_size": 16, "data.limit": 56}
    return resolve({**PLAIN, **small, **choices})


def data(of: RunSpec) -> Dataset:
    return tasks.load(of.task, of.data)


def run(
    of: RunSpec, watch: Watch | None = None, saved: bytes | None = None
) -> tuple[Outcome, list[bytes]]:
    checkpoints: list[bytes] = []
    outcome = train(
        of, data(of), watch or Watch(), [] if saved is None else [saved], checkpoints.append
    )
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
        transform = make_transform(METHODS[method].transform)
        optimizer = znorm.optim.Adam(
            model.parameters(), 1e-3, transform=transform, model=model, fused=True
        )
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
            loss = F.cross_entropy(model(x), dataset.train.targets[index])
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
    hits = (logits.argmax(1) == dataset.test.targets).double().mean()
    assert outcome.metrics["test_accuracy"] == pytest.approx(float(hits))


@pytest.mark.parametrize(
    ("precision", "stop_after"),
    [
        *(("float32", steps) for steps in (1, 3, 4, 5, 7)),
        ("bfloat16", 5),
        *(pytest.param("bfloat16", steps, marks=pytest.mark.slow) for steps in (1, 3, 4, 7)),
    ],
)
def test_a_run_that_was_stopped_ends_with_the_same_bits(precision: str, stop_after: int) -> None:
    of = spec(precision=precision)
    watch = Watch()
    whole, _ = run(of, watch)
    stopped = Watch(stop_after)
    checkpoints: list[bytes] = []
    with pytest.raises(Interrupted):
        train(of, data(of), stopped, [], checkpoints.append)
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
    of = spec()
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
    outcome, _ = run(of)
    assert (outcome.status, outcome.diverged_step) == ("diverged", 4)


def test_the_best_epoch_is_chosen_on_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([(0.9, 0.2), (0.5, 0.8), (0.9, 0.7)])

    def queue(self: Any, split: Split) -> Any:
        is_test = split is self._pipeline.dataset.test
        if not is_test:
            self.pair = next(scores)
        return lambda: {"accuracy": self.pair[is_test], "loss": 0.0}

    monkeypatch.setattr(loop.Evaluator, "queue", queue)
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


def test_a_segmenter_is_trained_and_its_cases_are_kept() -> None:
    of = resolve(
        {
            "task": "phantom",
            "method": "znorm",
            "epochs": 2,
            "batch_size": 8,
            "data.limit": 16,
            "data.augment": "dihedral",
            "device": "cpu",
            "precision": "float32",
        }
    )
    outcome, checkpoints = run(of)
    assert outcome.cases is not None
    assert len(outcome.cases) == 16
    for key, value in outcome.cases.scores().items():
        assert outcome.metrics[f"test_{key}"] == value
    assert {"test_f1", "test_tversky", "test_f1_per_patient", "test_f1_per_slice"} <= set(
        outcome.metrics
    )
    # Killed after the last checkpoint and before its result: the cases are worked out again.
    again, _ = run(of, saved=checkpoints[-1])
    assert again.metrics == outcome.metrics
    assert again.hashes == outcome.hashes
    assert again.cases is not None
    assert again.cases.rows() == outcome.cases.rows()


def test_micro_batches_add_up_to_the_gradient_of_the_whole_batch() -> None:
    """Without batch normalization, and for a mean over images, there is no difference."""
    choices = {"model": "plain56", "model_options.init": "he", "method": "baseline", "epochs": 1}
    choices |= {"batch_size": 8, "data.limit": 16, "optimizer": "sgd"}
    whole, _ = run(spec(**choices))
    pieces, _ = run(spec(**choices, micro_batch=3))
    assert whole.hashes["batches"] == pieces.hashes["batches"]
    assert whole.metrics["train_loss"] == pytest.approx(pieces.metrics["train_loss"], rel=1e-5)
    assert whole.metrics["test_loss"] == pytest.approx(pieces.metrics["test_loss"], rel=1e-4)


def test_a_micro_batch_never_holds_a_single_image(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    original = torch.nn.BatchNorm2d.forward

    def counting(self: Any, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            sizes.append(len(x))
        return original(self, x)

    monkeypatch.setattr(torch.nn.BatchNorm2d, "forward", counting)
    run(spec(epochs=1, batch_size=9, micro_batch=2, **{"data.limit": 20}))
    assert min(sizes) == 2
    assert max(sizes) == 3  # 9 images in pieces of 2, 2, 2 and 3


def test_the_learning_rate_follows_its_schedule_and_survives_a_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rates: list[float] = []
    original = loop.take_step

    def noting(of: Any, net: Any, optimizer: Any, *batch: Any) -> Any:
        rates.append(optimizer.param_groups[0]["lr"])
        return original(of, net, optimizer, *batch)

    monkeypatch.setattr(loop, "take_step", noting)
    of = spec(epochs=3, schedule="multistep:1,2", method="baseline")
    whole, checkpoints = run(of)
    assert rates == pytest.approx([1e-3] * 4 + [1e-4] * 4 + [1e-5] * 4)
    rates.clear()
    resumed, _ = run(of, saved=checkpoints[0])
    assert rates == pytest.approx([1e-4] * 4 + [1e-5] * 4)
    assert resumed.hashes == whole.hashes


@pytest.mark.parametrize("workers", [1, 3])
def test_loader_threads_change_no_bit(workers: int) -> None:
    of = spec(epochs=1)
    outcome = train(of, data(of), Watch(), [], lambda _: None, workers)
    assert outcome.hashes == run(of)[0].hashes


def test_a_captured_step_needs_a_gpu() -> None:
    with pytest.raises(ConfigurationError, match="cuda_graph: needs device cuda, found cpu"):
        spec(cuda_graph=True)
    assert spec(cuda_graph=False).hash == spec().hash


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("augment", ["none", "flip", "crop_flip", "dihedral"])
def test_batches_made_on_the_device_are_those_of_the_cpu(resident: bool, augment: str) -> None:
    """On the meta device no value can be read: nothing waits for what is made there."""
    of = spec(**{"data.augment": augment})
    dataset = data(of)
    plan = batches(0, 1, len(dataset.train), 16)
    pipeline = Pipeline(dataset, augment, 0, torch.device("cpu"))
    pipeline.resident = resident
    expected = [pipeline.training_batch(1, index) for index in plan]
    for one, other in zip(pipeline.training_batches(1, plan), expected, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.targets, other.targets)
        assert torch.equal(one.checksum, other.checksum)
    far = Pipeline(dataset, augment, 0, torch.device("meta"))
    far.resident = True
    for one, other in zip(far.training_batches(1, plan), expected, strict=True):
        assert one.images.shape == other.images.shape
        assert one.images.device.type == one.checksum.device.type == "meta"
