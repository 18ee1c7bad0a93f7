"""What a plan says, against memory counted by hand and against time that is given."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lab.kit import finished
from znorm import lab
from znorm.lab import tasks, trust
from znorm.lab.runs import cost as costs
from znorm.lab.runs.cost import costs_on_terminal, plan
from znorm.lab.runs.folder import Run
from znorm.lab.runs.grid import grid
from znorm.lab.spec import RunSpec, resolve
from znorm.lab.training import memory
from znorm.lab.training.memory import Need


@pytest.fixture(autouse=True)
def own_net() -> Iterator[None]:
    with trust.trusting(everything=True):
        yield


def net(
    channels: int, classes: int, image_size: tuple[int, int], computed: bool = False
) -> nn.Module:
    """One layer of which all is known, and perhaps a weight that is computed from another."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(channels, 8, 1, bias=False)
            self.head = nn.Linear(8, classes, bias=False)
            if computed:
                self.raw = nn.Parameter(torch.zeros(1000, 1000))

        def forward(self, images: Tensor) -> Tensor:
            found: Tensor = self.head(self.layer(images).exp().mean((2, 3)))
            return found + self.raw.tanh().sum() if computed else found

    return Net()


def net_with_computed_weights(
    channels: int, classes: int, image_size: tuple[int, int]
) -> nn.Module:
    return net(channels, classes, image_size, computed=True)


def spec(**choices: Any) -> RunSpec:
    given = {"model": f"{__name__}:net", "device": "cpu", "precision": "float32", "batch_size": 64}
    return resolve({**given, **choices})


def test_memory_is_that_of_what_is_kept_for_the_backward() -> None:
    of = spec()
    found = memory.need(of, tasks.load(of.task, of.data))
    weights = 4 * (3 * 8 + 8 * 2)
    # Weights and Adam's two averages; gradients come when what was kept goes.
    assert 0 <= found.fixed - 3 * weights <= 64
    # The input; the exponential's result; the mean's; the log of the softmax; the target.
    floats = 3 * 32 * 32 + 8 * 32 * 32 + 8 + 2
    assert abs(found.each - 4 * floats) <= 32
    assert found.of(10) == found.fixed + 10 * found.each
    sgd = memory.need(spec(optimizer="sgd"), tasks.load(of.task, of.data))
    assert found.fixed - sgd.fixed == weights
    # What does not depend on images counts once: a million weights, and what is computed of them.
    other = spec(model=f"{__name__}:net_with_computed_weights")
    computed = memory.need(other, tasks.load(of.task, of.data))
    assert computed.each == found.each
    assert computed.fixed - found.fixed == (3 + 1) * 4_000_000


@pytest.mark.parametrize(
    ("model", "precision"), [("resnet56", "bfloat16"), ("resnet56", "float32")]
)
def test_what_a_step_keeps_is_no_more_than_a_whole_batch_keeps(model: str, precision: str) -> None:
    of = spec(model=model, precision=precision)
    data = tasks.load(of.task, of.data)
    need = memory.need(of, data)
    whole = memory._kept(of, memory.set_up(of, data)[0], data, 32)
    weights = 3 * 4 * 853_018
    assert need.of(32) - weights == pytest.approx(whole, rel=0.02)


def test_the_largest_half_that_fits() -> None:
    need = Need(fixed=100, each=10)
    assert need.fitting(64, 740) == 64
    assert need.fitting(64, 739) == 32
    assert need.fitting(64, 120) == 2
    assert need.fitting(64, 119) is None


def test_a_container_has_what_it_may_use_and_files_in_memory_count_as_free(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = Path
    monkeypatch.setattr(memory, "Path", lambda name: tmp_path / str(name).lstrip("/"))
    assert memory.available() is None
    (tmp_path / "proc").mkdir()
    text = "MemTotal: 9000 kB\nMemAvailable: 8000 kB\nSwapFree: 500 kB\n"
    (tmp_path / "proc" / "meminfo").write_text(text)
    assert memory.available() == 8500 * 1024
    group = tmp_path / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")  # no limit
    (group / "memory.current").write_text("6000000\n")
    (group / "memory.stat").write_text("anon 1000000\ninactive_file 5000000\n")
    assert memory.available() == 8500 * 1024
    (group / "memory.max").write_text("7000000\n")
    assert memory.available() == 7_000_000 - 6_000_000 + 5_000_000
    (group / "memory").mkdir()
    (group / "memory" / "memory.limit_in_bytes").write_text("3000000\n")
    (group / "memory" / "memory.usage_in_bytes").write_text("2000000\n")
    (group / "memory" / "memory.stat").write_text("total_inactive_file 7\n")
    assert memory.available() == 1_000_007
    assert real is Path


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="Linux says how much is free")
def test_available_memory_is_no_more_than_there_is() -> None:
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    free = memory.available()
    assert free is not None
    assert 0 < free <= 4 * total


def test_a_batch_that_memory_does_not_hold_is_refused_with_what_fits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    of = spec(model="resnet20")
    need = memory.need(of, tasks.load(of.task, of.data))
    # Of 20 at the least; what is advised leaves room for what is more than that.
    monkeypatch.setattr(memory, "available", lambda: need.of(20))
    choices: dict[str, Any] = {"methods": ["znorm"], "seeds": 1, "out": tmp_path, "limit": 64}
    choices |= {"device": "cpu", "precision": "float32", "batch_size": 64, "epochs": 1}
    with pytest.raises(lab.ConfigurationError) as caught:
        lab.compare(**choices)
    assert "model resnet20: 64 images of 32x32 at once need at least" in str(caught.value)
    assert "--micro-batch 8 fits" in str(caught.value)
    assert not list(tmp_path.rglob("*"))
    (one,) = lab.compare(**choices, micro_batch=16)
    assert one.status == "done"
    with pytest.raises(lab.ConfigurationError, match="are free for each job; --micro-batch 4 fits"):
        lab.compare(**{**choices, "seeds": [7], "micro_batch": 16, "jobs": 2})
    # Runs that are done need no memory.
    assert lab.compare(**choices, micro_batch=16)[0].status == "done"
    monkeypatch.setattr(memory, "available", lambda: 1000)
    with pytest.raises(lab.ConfigurationError, match="not even two fit"):
        lab.compare(**{**choices, "seeds": [1]})


def test_a_small_batch_costs_no_look_at_the_net(monkeypatch: pytest.MonkeyPatch) -> None:
    of = spec()
    monkeypatch.setattr(memory, "available", lambda: 1 << 40)
    monkeypatch.setattr(memory, "need", None)
    memory.check(of, tasks.load(of.task, of.data))
    monkeypatch.setattr(memory, "available", lambda: None)
    memory.check(of, tasks.load(of.task, of.data))


def test_the_cost_is_steps_times_their_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A step takes 0.1 s and 0.02 s an image, a look at an image 0.005 s."""

    def timed(of: RunSpec, work: Any, images: Tensor, targets: Tensor) -> float:
        size = len(images)
        return 0.1 + 0.02 * size if work.__name__ == "step" else 0.005 * size

    monkeypatch.setattr(costs, "_timed", timed)
    choices = {"model": "resnet20", "epochs": 3, "batch_size": 16, "device": "cpu"}
    specs = grid("baseline,znorm", 2, {**choices, "precision": "float32"})
    one = Run.at(tmp_path, specs[0])
    one.announce()
    one.finish(finished({"train_loss": 0.5, "test_accuracy": 0.5}))
    heard: list[str] = []
    (cost,) = plan(specs, tmp_path, lambda spec: heard.append(spec.model))
    assert heard == ["resnet20"]
    data = tasks.load(specs[0].task, specs[0].data)
    steps = -(-len(data.train) // 16)
    epoch = 0.1 * steps + 0.02 * len(data.train)
    looks = 0.005 * (len(data.validation) + len(data.test))
    # At the end once more, for the threshold and the cases.
    assert cost.seconds == pytest.approx(3 * epoch + 4 * looks)
    assert cost.training == pytest.approx(len(data.train) / epoch)
    assert (cost.runs, cost.left, cost.micro_batch) == (4, 3, None)
    # In pieces, each of which costs what does not depend on its images.
    pieces = grid("znorm", 1, {**choices, "precision": "float32", "micro_batch": 4})
    (cost,) = plan(pieces, tmp_path)
    epoch = 0.1 * steps * 4 + 0.02 * len(data.train)
    # At the end once more, for the threshold and the cases.
    assert cost.seconds == pytest.approx(3 * epoch + 4 * looks)
    masks = {"task": "phantom", "epochs": 2, "batch_size": 16, "device": "cpu"}
    (of,) = grid("znorm", 1, {**masks, "precision": "float32"})
    (cost,) = plan([of], tmp_path)
    # 192, 48 and 80 slices.
    assert cost.seconds == pytest.approx(2 * (0.1 * 12 + 0.02 * 192) + 3 * 0.005 * 128)


def test_a_plan_says_what_fits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    of = spec(batch_size=64)
    need = memory.need(of, tasks.load(of.task, of.data))
    for images, expected in ((64, None), (40, 16), (1, 0)):
        monkeypatch.setattr(memory, "available", lambda images=images: need.of(images))
        (cost,) = plan([of], tmp_path)
        assert (cost.micro_batch, cost.memory) == (expected, need.of(64))
    assert math.isnan(cost.seconds)  # nothing is tried that memory does not hold
    assert costs_on_terminal([cost]).row_count == 2


def test_a_plan_finds_what_fits_where_the_least_was_too_little(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = costs._paces
    tried = []

    def paces(of: RunSpec, data: Any, most: int) -> Any:
        tried.append(most)
        if most > 16:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(of, data, 2)

    monkeypatch.setattr(costs, "_paces", paces)
    (cost,) = plan([spec(batch_size=64)], tmp_path)
    assert (tried, cost.micro_batch) == ([64, 32, 16], 16)
    with pytest.raises(lab.ConfigurationError, match="too few"):
        plan([spec(**{"data.limit": 1})], tmp_path)
