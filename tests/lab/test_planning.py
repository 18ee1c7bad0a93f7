"""What a plan says, against memory counted by hand and against time that is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from znorm import lab
from znorm.lab import comparison, planning, tasks
from znorm.lab.planning import plan
from znorm.lab.spec import RunSpec, resolve
from znorm.lab.store import Run
from znorm.lab.training import memory
from znorm.lab.training.memory import Need


def net(channels: int, classes: int, image_size: tuple[int, int]) -> nn.Module:
    """One layer of which all is known."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(channels, 8, 1, bias=False)
            self.head = nn.Linear(8, classes, bias=False)

        def forward(self, images: Tensor) -> Tensor:
            found: Tensor = self.head(self.layer(images).exp().mean((2, 3)))
            return found

    return Net()


def spec(**choices: Any) -> RunSpec:
    given = {"model": f"{__name__}:net", "device": "cpu", "precision": "float32", "batch_size": 64}
    return resolve({**given, **choices})


def test_memory_is_that_of_what_is_kept_for_the_backward() -> None:
    of = spec()
    found = memory.need(of, tasks.load(of.task, of.data))
    weights = 4 * (3 * 8 + 8 * 2)
    assert found.fixed == 4 * weights  # weights, gradients, two averages
    # The input; the exponential's result; the mean's; the log of the softmax; the target.
    floats = 3 * 32 * 32 + 8 * 32 * 32 + 8 + 2
    assert abs(found.each - 4 * floats) <= 32
    assert found.of(10) == found.fixed + 10 * found.each


def test_the_largest_half_that_fits() -> None:
    need = Need(fixed=100, each=10)
    assert need.fitting(64, 740) == 64
    assert need.fitting(64, 739) == 32
    assert need.fitting(64, 120) == 2
    assert need.fitting(64, 119) is None


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
    monkeypatch.setattr(memory, "available", lambda: need.of(20))
    choices: dict[str, Any] = {"methods": ["znorm"], "seeds": 1, "out": tmp_path, "limit": 64}
    choices |= {"device": "cpu", "precision": "float32", "batch_size": 64, "epochs": 1}
    with pytest.raises(lab.ConfigurationError) as caught:
        lab.compare(**choices)
    assert "model resnet20: 64 images of 32x32 at once need at least" in str(caught.value)
    assert "--micro-batch 16 fits" in str(caught.value)
    assert not list(tmp_path.rglob("*"))
    (one,) = lab.compare(**choices, micro_batch=16)
    assert one.status == "done"
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

    monkeypatch.setattr(planning, "_timed", timed)
    choices = {"model": "resnet20", "epochs": 3, "batch_size": 16, "device": "cpu"}
    specs = comparison.grid("baseline,znorm", 2, {**choices, "precision": "float32"})
    one = Run.at(tmp_path, specs[0])
    one.announce()
    one.finish({"status": "done", "metrics": {}})
    heard: list[str] = []
    (cost,) = plan(specs, tmp_path, lambda spec: heard.append(spec.model))
    assert heard == ["resnet20"]
    data = tasks.load(specs[0].task, specs[0].data)
    steps = -(-len(data.train) // 16)
    epoch = 0.1 * steps + 0.02 * len(data.train)
    looks = 0.005 * (len(data.validation) + len(data.test))
    assert cost.seconds == pytest.approx(3 * (epoch + looks))
    assert cost.training == pytest.approx(len(data.train) / epoch)
    assert (cost.runs, cost.left, cost.micro_batch) == (4, 3, None)


def test_a_plan_says_what_fits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    of = spec(batch_size=64)
    need = memory.need(of, tasks.load(of.task, of.data))
    for images, expected in ((64, None), (40, 32), (1, 0)):
        monkeypatch.setattr(memory, "available", lambda images=images: need.of(images))
        (cost,) = plan([of], tmp_path)
        assert (cost.micro_batch, cost.memory) == (expected, need.of(64))
