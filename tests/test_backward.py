from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import znorm

IMAGES = torch.randn(16, 6, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """A frozen layer, and a weight that two layers share."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(6, 6)
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.again = nn.Linear(6, 6)
        self.again.weight = self.first.weight
        self.head = nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = self.head(self.again(self.frozen(self.first(images).tanh())).tanh())
        return output


def loss_of(model: nn.Module) -> Tensor:
    return (model(IMAGES) - IMAGES[:, :3]).square().mean()


def adam(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.01)


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    "transform",
    [
        None,
        znorm.ZNorm(),
        znorm.ZNorm(select=[("head.*", False)]),
        znorm.chain(znorm.Centralize(), znorm.ClipValue(0.1), znorm.AdaptiveClip(0.1)),
        znorm.ZNorm(select=[("first.weight", znorm.Layers(2))]),
    ],
    ids=str,
)
@pytest.mark.parametrize("make", [adam, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)])
def test_the_same_weights_as_the_ordinary_step(make: Any, transform: Any) -> None:
    ordinary, stepped = Net(), Net()
    optimizer = make([p for p in ordinary.parameters() if p.requires_grad])
    if transform is not None:
        znorm.attach(optimizer, transform, model=ordinary)
    handle = znorm.in_backward(stepped, make, transform)
    assert list(handle.optimizers) == [
        "first.weight",
        "first.bias",
        "again.bias",
        "head.weight",
        "head.bias",
    ]
    for _ in range(5):
        ordinary.zero_grad()
        loss_of(ordinary).backward()
        optimizer.step()
        loss_of(stepped).backward()
        assert all(p.grad is None for p in stepped.parameters())
    assert same(weights(ordinary), weights(stepped))
    assert not same(weights(ordinary), weights(Net()))


def test_gradients_are_freed_one_by_one() -> None:
    model = Net()
    most = 0
    znorm.in_backward(model, adam, znorm.ZNorm())

    def count(_: Tensor) -> None:
        nonlocal most
        most = max(most, sum(p.grad is not None for p in model.parameters()))

    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_hook(lambda g: count(g))
    loss_of(model).backward()
    assert most <= 1


def test_schedulers_and_state() -> None:
    undisturbed, model = Net(), Net()
    handles = {}
    schedulers = {}
    for net in (undisturbed, model):
        handles[net] = znorm.in_backward(net, adam, znorm.ZNorm())
        schedulers[net] = [
            torch.optim.lr_scheduler.StepLR(optimizer, 2)
            for optimizer in handles[net].optimizers.values()
        ]

    def train(net: nn.Module, steps: int) -> None:
        for _ in range(steps):
            loss_of(net).backward()
            for scheduler in schedulers[net]:
                scheduler.step()

    train(undisturbed, 6)
    train(model, 3)
    state, held = copy.deepcopy(handles[model].state_dict()), copy.deepcopy(model.state_dict())
    assert set(state) == set(handles[model].optimizers)
    resumed = Net()
    resumed.load_state_dict(held)
    handles[resumed] = znorm.in_backward(resumed, adam, znorm.ZNorm())
    schedulers[resumed] = [
        torch.optim.lr_scheduler.StepLR(optimizer, 2)
        for optimizer in handles[resumed].optimizers.values()
    ]
    for mine, theirs in zip(schedulers[resumed], schedulers[model], strict=True):
        mine.load_state_dict(theirs.state_dict())
    handles[resumed].load_state_dict(state)
    train(resumed, 3)
    assert same(weights(undisturbed), weights(resumed))
    assert handles[resumed].optimizers["head.bias"].param_groups[0]["lr"] == pytest.approx(1e-5)


def test_state_of_another_net_is_refused_whole() -> None:
    handle = znorm.in_backward(Net(), adam, znorm.ZNorm())
    loss_of_state = handle.state_dict()
    missing = {k: v for k, v in loss_of_state.items() if k != "head.bias"}
    with pytest.raises(ValueError, match=r"state: lacks head\.bias; nothing was loaded"):
        handle.load_state_dict(missing)
    with pytest.raises(ValueError, match=r"state: has the unknown tail\.bias"):
        handle.load_state_dict(loss_of_state | {"tail.bias": {}})


def test_detached_it_computes_gradients_again() -> None:
    model = Net()
    handle = znorm.in_backward(model, adam, znorm.ZNorm())
    loss_of(model).backward()
    assert handle.receipt()["head.weight"]["steps"] == 1
    handle.detach()
    handle.detach()
    before = weights(model)
    loss_of(model).backward()
    assert same(before, weights(model))
    assert model.head.weight.grad is not None
    assert model.head.weight.grad.mean().abs() > 1e-5


def test_what_would_be_wrong_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match="needs all gradients at once"):
        znorm.in_backward(Net(), adam, znorm.chain(znorm.ZNorm(), znorm.ClipGlobalNorm(1.0)))
    model = Net()
    loss_of(model).backward()
    with pytest.raises(ValueError, match=r"first\.weight: has a gradient already"):
        znorm.in_backward(model, adam, znorm.ZNorm())
    with pytest.raises(TypeError, match="model: expected a torch"):
        znorm.in_backward([nn.Parameter(torch.zeros(2))], adam)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="none of its parameters requires a gradient"):
        znorm.in_backward(Net().requires_grad_(False), adam)
    with pytest.raises(TypeError, match=r"make_optimizer: expected a function .* found str 'sgd'"):
        znorm.in_backward(Net(), "sgd")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="make_optimizer: expected it to return"):
        znorm.in_backward(Net(), lambda p: None)  # type: ignore[arg-type,return-value]
    whole = Net()
    with pytest.raises(
        ValueError, match=r"of the one parameter that it is given \(first\.weight\)"
    ):
        znorm.in_backward(whole, lambda p: adam(list(whole.parameters())))
    with pytest.raises(ValueError, match="the step of LBFGS needs a closure"):
        znorm.in_backward(Net(), lambda p: torch.optim.LBFGS(p))
    with pytest.raises(ValueError, match="attached already; give the transform to in_backward"):
        znorm.in_backward(Net(), lambda p: znorm.optim.Adam(p, transform=znorm.ZNorm()))
    with pytest.raises(ValueError, match="rule 0 'tail' matches no parameter"):
        znorm.in_backward(Net(), adam, znorm.ZNorm(select=[("tail", False)]))


SCALED: dict[str, Any] = {
    "as it is": lambda s, loss: s.scale(loss),
    "divided": lambda s, loss: s.scale(loss) / 2,
    "summed": lambda s, loss: s.scale(loss).sum(),
    "two": lambda s, loss: s.scale(loss) + s.scale(loss),
    "stacked": lambda s, loss: torch.stack([s.scale(loss)]).mean(),
    "a list": lambda s, loss: sum(s.scale([loss, 2 * loss])),
}


@pytest.mark.parametrize("how", SCALED)
@pytest.mark.parametrize("steps_before", [0, 2])
def test_a_scaled_loss_is_refused_and_nothing_is_stepped(how: str, steps_before: int) -> None:
    model = Net()
    znorm.in_backward(model, adam, znorm.ZNorm())
    for _ in range(steps_before):
        loss_of(model).backward()
    before = weights(model)
    scaler = torch.amp.GradScaler("cpu")
    with pytest.raises(RuntimeError, match="the loss is scaled by a GradScaler"):
        SCALED[how](scaler, loss_of(model)).backward()
    assert same(before, weights(model))
    assert all(p.grad is None for p in model.parameters())


def test_a_scaler_of_another_net_or_one_that_is_off_is_no_obstacle() -> None:
    other, model = Net(), Net()
    znorm.in_backward(model, adam, znorm.ZNorm())
    scaler, off = torch.amp.GradScaler("cpu"), torch.amp.GradScaler("cpu", enabled=False)
    scaler.scale(loss_of(other)).backward()
    for make in (lambda: 10.0 * loss_of(model), lambda: off.scale(loss_of(model))):
        before = weights(model)
        make().backward()
        assert not same(before, weights(model))


def test_a_shared_layer_in_reentrant_checkpoints_is_refused() -> None:
    from torch.utils.checkpoint import checkpoint

    def backward_through(model: Net, reentrant: bool) -> None:
        hidden = IMAGES.clone().requires_grad_()
        for _ in range(2):
            hidden = checkpoint(model.first, hidden, use_reentrant=reentrant)
        model.head(hidden).square().mean().backward()

    ordinary, model = Net(), Net()
    optimizer = torch.optim.SGD(ordinary.parameters(), lr=0.1)
    znorm.attach(optimizer, znorm.ZNorm(), model=ordinary)
    backward_through(ordinary, reentrant=False)
    optimizer.step()
    znorm.in_backward(model, lambda p: torch.optim.SGD(p, lr=0.1), znorm.ZNorm())
    backward_through(model, reentrant=False)
    assert same(weights(ordinary), weights(model))
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        backward_through(model, reentrant=True)


def test_twice_on_one_model_and_gradients_from_elsewhere_are_refused() -> None:
    model = Net()
    handle = znorm.in_backward(model, adam, znorm.ZNorm())
    with pytest.raises(ValueError, match=r"first\.weight: steps in backward already"):
        znorm.in_backward(model, adam, znorm.ZNorm())
    model.head.bias.grad = torch.ones(3)
    with pytest.raises(RuntimeError, match="bias: has a gradient, to which"):
        loss_of(model)
    model.head.bias.grad = None
    handle.detach()
    znorm.in_backward(model, adam, znorm.ZNorm())


def test_a_handle_cannot_be_copied() -> None:
    import pickle

    handle = znorm.in_backward(Net(), adam, znorm.ZNorm())
    for how in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match=r"save state_dict\(\)"):
            how(handle)


@pytest.fixture
def process_group() -> Any:
    if not torch.distributed.is_available():
        pytest.skip("torch without distributed")
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(os.name == "nt", reason="gloo")
def test_ddp_is_refused_before_and_after(process_group: Any) -> None:
    wrapped = nn.parallel.DistributedDataParallel(nn.Linear(6, 3))
    with pytest.raises(ValueError, match="model: all of it is wrapped in DistributedDataParallel"):
        znorm.in_backward(wrapped, adam, znorm.ZNorm())
    with pytest.raises(ValueError, match="model: 0 is wrapped in DistributedDataParallel"):
        znorm.in_backward(nn.Sequential(wrapped), adam, znorm.ZNorm())
    model = nn.Linear(6, 3)
    znorm.in_backward(model, adam, znorm.ZNorm())
    with pytest.raises(RuntimeError, match="whose all-reduce comes after"):
        nn.parallel.DistributedDataParallel(model)(IMAGES)
    model(IMAGES)
    part = nn.Sequential(nn.Linear(6, 3))
    znorm.in_backward(part, adam, znorm.ZNorm())
    part[0] = nn.parallel.DistributedDataParallel(part[0])
    with pytest.raises(RuntimeError, match="whose all-reduce comes after"):
        part(IMAGES)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads peaks from /proc")
def test_peak_memory_is_lower_by_most_of_the_gradients_size(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "benchmarks" / "memory.py"
    file = tmp_path / "memory.json"
    subprocess.run([sys.executable, script, "--repeats", "1", "--json", file], check=True)
    found = json.loads(file.read_text())
    assert found["parameters"] > 25e6
    assert found["saved_share_of_gradients"] >= 0.75
