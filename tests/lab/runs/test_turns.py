"""Runs that take turns in one process: each computes what it computes alone, whatever others do.

On a CPU, where it is not done otherwise; `training/test_on_gpu.py` has streams and graphs.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import torch

from znorm import lab
from znorm.lab.errors import ConfigurationError, Interrupted, LabError
from znorm.lab.runs import runner
from znorm.lab.runs.folder import Run
from znorm.lab.runs.progress import Silent
from znorm.lab.runs.turns import NoRoomError, Turns
from znorm.lab.spec import resolve
from znorm.lab.training import checkpoint, loop, setup
from znorm.lab.training.surroundings import Surroundings

SMALL: dict[str, Any] = {"epochs": 2, "limit": 40, "batch_size": 8, "device": "cpu"}
GRID: dict[str, Any] = {**SMALL, "methods": ["baseline", "znorm"], "seeds": 2}
Steps = Generator[None, None, None]


def turns(most: int, said: list[int] | None = None, *, at_once: bool = False) -> Turns:
    return Turns(most, (said if said is not None else []).append, lambda: at_once)


def part(name: str, steps: int, done: list[str], end: type[BaseException] | None = None) -> Any:
    def run() -> Steps:
        try:
            for number in range(steps):
                done.append(f"{name}{number}")
                yield
            if end is not None:
                raise end
        finally:
            done.append(f"{name}.")

    return run


def test_so_many_take_a_step_in_turn_and_the_next_one_begins_where_one_ends() -> None:
    done: list[str] = []
    turns(2).take([part("a", 3, done), part("b", 1, done), part("c", 2, done)])
    assert done == ["a0", "b0", "a1", "b.", "c0", "a2", "c1", "a.", "c."]
    done.clear()
    turns(1).take([part("a", 2, done), part("b", 1, done)])
    assert done == ["a0", "a1", "a.", "b0", "b."]


def test_one_without_room_waits_until_there_are_fewer() -> None:
    done: list[str] = []
    said: list[int] = []
    of = turns(3, said)

    def greedy() -> Steps:
        done.append("alone" if of.alone else "beside others")
        if not of.alone:
            raise NoRoomError
        yield

    of.take([part("a", 2, done), part("b", 3, done), greedy])
    assert said == [2, 1]
    assert done.count("beside others") == 2
    assert done[-1] == "alone"


def test_whoever_is_interrupted_waits_for_the_others_to_stop_by_themselves() -> None:
    done: list[str] = []
    parts = [
        part("a", 1, done, Interrupted),
        part("b", 2, done, Interrupted),
        part("c", 1, done),
        part("d", 1, done),
    ]
    with pytest.raises(Interrupted):
        turns(3).take(parts)
    assert done == ["a0", "b0", "c0", "a.", "b1", "c.", "b."]  # d never begins


@pytest.mark.parametrize("error", [ValueError, Interrupted])
def test_an_error_or_a_second_signal_closes_the_others(error: type[BaseException]) -> None:
    done: list[str] = []
    with pytest.raises(error):
        turns(2, at_once=True).take([part("a", 1, done, error), part("b", 9, done)])
    assert done == ["a0", "b0", "a.", "b."]


@pytest.fixture
def three_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_division", lambda runs, jobs: (1, jobs))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    return lab.compare(**GRID, deterministic=True, out=tmp_path_factory.mktemp("alone"))


def hashes(runs: list[Run]) -> list[Any]:
    return [(run.status, (run.result or {}).get("hashes"), curve(run)) for run in runs]


def curve(run: Run) -> list[dict[str, Any]]:
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in run.history]


def test_runs_in_turns_have_the_bits_of_runs_alone(
    tmp_path: Path, three_at_once: None, alone: list[Run]
) -> None:
    beside = lab.compare(**GRID, deterministic=True, out=tmp_path, jobs=3)
    assert [run.status for run in alone] == ["done"] * 4
    assert hashes(alone) == hashes(beside)


class Dropping(torch.nn.Module):
    """A net that draws random numbers at each step."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(torch.nn.functional.dropout(images.mean((2, 3)), 0.5))
        return out


def test_each_has_random_numbers_of_its_own(
    tmp_path: Path, three_at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "_net_for", lambda spec, dataset: Dropping())
    choices = {**SMALL, "methods": ["baseline", "znorm"], "seeds": 1}
    alone = lab.compare(**choices, out=tmp_path / "alone")
    beside = lab.compare(**choices, out=tmp_path / "beside", jobs=2)
    assert hashes(alone) == hashes(beside)


def test_what_a_run_sets_is_its_own() -> None:
    def settings() -> tuple[Any, ...]:
        deterministic = torch.are_deterministic_algorithms_enabled()
        return deterministic, torch.get_num_threads(), torch.get_rng_state().tolist()

    before = settings()
    first, second = (Surroundings(torch.device("cpu")) for _ in range(2))
    with first:
        torch.manual_seed(1)
        torch.use_deterministic_algorithms(True)
        torch.set_num_threads(3)
        inside = settings()
    assert settings() == before
    with contextlib.suppress(ValueError), second:
        assert settings() == before
        torch.manual_seed(2)
        raise ValueError
    assert settings() == before
    with first:
        assert settings() == inside
        drawn = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), drawn)


class State:
    """A state of a GPU's generator, which graphs hold on to."""

    def __init__(self, seed: int) -> None:
        self.seed = seed


class GpuGenerator:
    """A GPU's generator, or what holds one of its states."""

    def __init__(self, state: State) -> None:
        self.state = state

    def clone_state(self) -> GpuGenerator:
        return GpuGenerator(State(self.state.seed))

    def graphsafe_get_state(self) -> GpuGenerator:
        return GpuGenerator(self.state)

    def graphsafe_set_state(self, other: GpuGenerator) -> None:
        self.state = other.state


@pytest.fixture
def generator(monkeypatch: pytest.MonkeyPatch) -> GpuGenerator:
    made = GpuGenerator(State(0))
    monkeypatch.setattr(torch.cuda, "default_generators", (made,))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    return made


def test_each_has_a_state_of_the_gpus_generator_to_itself(generator: GpuGenerator) -> None:
    """The state itself and not its numbers: a graph reads it where it was captured."""
    before = generator.state
    runs = [Surroundings(torch.device("cuda")) for _ in range(2)]
    states: list[State] = []
    for number, run in enumerate(runs):
        with run:
            generator.state.seed = number + 1  # as manual_seed does
            states.append(generator.state)
        assert generator.state is before
    assert before.seed == 0
    assert len({id(state) for state in (before, *states)}) == 3
    for number in (1, 0):
        with runs[number]:
            assert generator.state is states[number]
            assert generator.state.seed == number + 1


def test_algorithms_are_tried_on_a_gpu_within_a_turn_alone(
    generator: GpuGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where flags of cuDNN may be set by its context alone, too, as torch's own tests have it."""
    monkeypatch.setattr(torch.backends, "__allow_nonbracketed_mutation_flag", False)
    for device, tries, expected in (
        ("cuda", True, True),
        ("cuda", False, False),
        ("cpu", True, False),
    ):
        surroundings = Surroundings(torch.device(device), tries_algorithms=tries)
        for _ in range(2):
            with surroundings:
                assert torch.backends.cudnn.benchmark is expected
            assert torch.backends.cudnn.benchmark is False


def test_a_gpu_that_answers_no_more_fails_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is this process that has failed: what was saved is gone on from."""
    (run,) = lab.compare(**SMALL, methods=["baseline"], seeds=1, out=tmp_path)
    error = RuntimeError("CUDA error: an illegal memory access\nwas encountered")

    def synchronize() -> None:
        raise error

    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    runner._check_gpu(run, error)  # it does answer: the run alone has failed
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    with pytest.raises(LabError, match=r"answers this process no more .* memory access was"):
        runner._check_gpu(run, error)


def test_what_cublas_asks_for_is_set_in_time_or_said(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = resolve({"deterministic": True, "device": "cpu"})
    on_gpu = spec.model_copy(update={"device": "cuda"})
    name = "CUBLAS_WORKSPACE_CONFIG"
    monkeypatch.setenv(name, "")  # put back at the end
    monkeypatch.delenv(name)
    runner._prepare_determinism([spec])
    assert name not in os.environ
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(ConfigurationError, match=r"CUBLAS_WORKSPACE_CONFIG=:4096:8 .* found none"):
        runner._prepare_determinism([spec, on_gpu])
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    runner._prepare_determinism([on_gpu])
    assert os.environ[name] == ":4096:8"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    runner._prepare_determinism([on_gpu])
    monkeypatch.setenv(name, ":0:0")
    with pytest.raises(ConfigurationError, match="found :0:0"):
        runner._prepare_determinism([on_gpu])


def test_the_seconds_of_runs_in_turns_add_up_to_those_of_all(
    tmp_path: Path, three_at_once: None
) -> None:
    begun = time.perf_counter()
    runs = lab.compare(**GRID, out=tmp_path, jobs=4)
    took = time.perf_counter() - begun
    assert 0 < sum(run.result["seconds"] for run in runs if run.result) <= took


def test_a_run_goes_on_where_there_are_fewer_gpus(
    generator: GpuGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the state of the GPU that it is on is kept; of those of earlier versions, the first."""
    net = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(net.parameters())
    own, others = torch.tensor([1, 2], dtype=torch.uint8), torch.tensor([9], dtype=torch.uint8)
    put: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: own)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [own, others])
    monkeypatch.setattr(torch.cuda, "set_rng_state", put.append)
    content = checkpoint.dump(net, optimizer, checkpoint.Position())
    state = torch.load(io.BytesIO(content), weights_only=True)
    assert len(state["random"]["cuda"]) == 1
    earlier = io.BytesIO()
    torch.save({**state, "random": {**state["random"], "cuda": [own, others]}}, earlier)
    for one in (content, earlier.getvalue()):
        checkpoint.load(one, net, optimizer)
    assert len(put) == 2
    assert all(torch.equal(one, own) for one in put)


def test_one_that_fails_or_diverges_leaves_the_others_alone(
    tmp_path: Path, three_at_once: None, alone: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = loop.take_step

    def poisoned(spec: Any, model: Any, *rest: Any) -> torch.Tensor:
        loss = original(spec, model, *rest)
        if (spec.method, spec.seed) == ("baseline", 1):
            raise RuntimeError("broken")
        return loss * torch.nan if (spec.method, spec.seed) == ("znorm", 0) else loss

    monkeypatch.setattr(loop, "take_step", poisoned)
    beside = lab.compare(**GRID, deterministic=True, out=tmp_path, jobs=4)
    states = {(run.spec.method, run.spec.seed): run.status for run in beside}
    assert states[("baseline", 1)] == "failed"
    assert states[("znorm", 0)] == "diverged"
    assert hashes(alone)[0] == hashes(beside)[0]
    assert hashes(alone)[3] == hashes(beside)[3]


def test_a_signal_saves_all_of_them_and_they_go_on_to_the_same_bits(
    tmp_path: Path, three_at_once: None, alone: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    choices = {**GRID, "deterministic": True, "out": tmp_path}
    original: Callable[..., torch.Tensor] = loop.take_step
    steps = 0

    def signalled(*arguments: Any) -> torch.Tensor:
        nonlocal steps
        steps += 1
        if steps == 8:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "take_step", signalled)
        with pytest.raises(Interrupted):
            lab.compare(**choices, jobs=3)
    states = [row["status"] for row in lab.status(tmp_path)]
    assert states == ["interrupted"] * 3 + ["waiting"]
    beside = lab.compare(**choices, jobs=3)
    assert hashes(alone) == hashes(beside)


class Notes(Silent):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


def test_out_of_memory_beside_others_is_tried_again_with_fewer(
    tmp_path: Path, three_at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = loop.take_step
    begun: set[Any] = set()

    def full(spec: Any, model: Any, *rest: Any) -> torch.Tensor:
        if len(begun) == 2 and id(model) not in begun:
            begun.add("enough")
            raise torch.OutOfMemoryError("CUDA out of memory")
        begun.add(id(model))
        return original(spec, model, *rest)

    monkeypatch.setattr(loop, "take_step", full)
    notes = Notes()
    runs = lab.compare(**GRID, out=tmp_path, jobs=3, display=notes)
    assert [run.status for run in runs] == ["done"] * 4
    (said,) = (text for text in notes.texts if "memory" in text)
    assert said == "the GPU's memory is not enough for 3 runs side by side: it goes on with 2"
