from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import znorm
from znorm.lab.errors import ConfigurationError
from znorm.lab.methods import METHODS, make_transform
from znorm.lab.optimizers import (
    OPTIMIZERS,
    check_schedule,
    learning_rate,
    make_optimizer,
    options_of,
)


def test_schedules_are_the_published_ones() -> None:
    lgg = [learning_rate(1e-2, "multistep:30,35,40,45", epoch, 50) for epoch in range(50)]
    assert lgg[0] == lgg[29] == 1e-2
    for first, rate in ((30, 1e-3), (35, 1e-4), (40, 1e-5), (45, 1e-6)):
        assert lgg[first : first + 5] == pytest.approx([rate] * 5)
    assert learning_rate(0.5, "constant", 7, 9) == 0.5
    cosine = [learning_rate(1.0, "cosine", epoch, 4) for epoch in range(4)]
    assert cosine == pytest.approx([1.0, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125)])


@pytest.mark.parametrize("epochs", ["²", "1,²", "①", "-1", "1.5", "", "1,", "9" * 5000])
def test_a_schedule_of_what_is_no_epoch_is_refused_with_what_is_valid(epochs: str) -> None:
    with pytest.raises(ConfigurationError, match="expected constant, cosine or multistep:EPOCH"):
        check_schedule(f"multistep:{epochs}")


EXPECTED: dict[str, Any] = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=1e-2, fused=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1),
    "torch.optim.NAdam": lambda p: torch.optim.NAdam(p, lr=0.1),
}


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("method", ["baseline", "znorm"])
def test_steps_are_those_of_torch_fed_the_transformed_gradient(name: str, method: str) -> None:
    nets = []
    for _ in range(2):
        torch.manual_seed(0)
        nets.append(nn.Linear(4, 3))
    options = options_of(name, None, 0.0)
    transform = make_transform(METHODS[method].transform)
    ours = make_optimizer(name, options, 0.0, transform, nets[0], 0.1)
    theirs = EXPECTED[name](nets[1].parameters())
    for step in range(3):
        torch.manual_seed(step)
        for net in nets:
            torch.manual_seed(step)
            net.zero_grad()
            net(torch.randn(8, 4)).square().sum().backward()
        if method == "znorm":
            znorm.z_score_([nets[1].weight.grad])
        ours.step()
        theirs.step()
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        if method == "baseline":
            assert torch.equal(one, other)
        else:
            # The step takes the transform in, and rounds once less.
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_adam_with_a_decay_is_adamw() -> None:
    net = nn.Linear(2, 2)
    options = options_of("adam", None, 1e-3)
    optimizer = make_optimizer("adam", options, 1e-3, None, net, 1e-3)
    assert isinstance(optimizer, znorm.optim.AdamW)
    assert optimizer.param_groups[0]["weight_decay"] == 1e-3


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_steps_under_every_optimizer(name: str, method: str) -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))
    options = options_of(name, None, METHODS[method].weight_decay)
    transform = make_transform(METHODS[method].transform)
    optimizer = make_optimizer(name, options, METHODS[method].weight_decay, transform, net, 1e-3)
    before = [p.detach().clone() for p in net.parameters()]
    net(torch.randn(4, 1, 4, 4)).square().mean().backward()
    optimizer.step()
    moved = [not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True)]
    assert moved[0]
    assert moved[4]
