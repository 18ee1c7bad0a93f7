"""Every option of every optimizer, wherever it comes from: held against torch's own class.

Options are given for all, to one group, by a checkpoint, or changed after some steps.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import znorm
from znorm.engine.execute import transform_
from znorm.kernels import registry

ADAM: dict[str, Any] = {
    "lr": 0.05,
    "lr, tensor": torch.tensor(0.05),
    "betas": (0.5, 0.8),
    "eps": 0.3,
    "weight_decay": 0.5,
    "maximize": True,
    "amsgrad": True,
    "decoupled_weight_decay": True,
    "foreach": True,
    "fused": True,
}
SGD: dict[str, Any] = {
    "lr": 0.05,
    "lr, tensor": torch.tensor(0.05),
    "momentum": 0.7,
    "dampening": 0.4,
    "weight_decay": 0.5,
    "nesterov": True,
    "maximize": True,
    "foreach": True,
    "fused": True,
}
BASES: dict[str, dict[str, Any]] = {
    "Adam": {"lr": 0.1, "weight_decay": 0.1},
    "AdamW": {"lr": 0.1, "weight_decay": 0.1},
    "SGD": {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.1},
}
CASES = [
    (kind, option)
    for kind, options in (("Adam", ADAM), ("AdamW", ADAM), ("SGD", SGD))
    for option in options
]
WAYS = ["given", "group", "checkpoint", "later", "later, group"]


def value_of(kind: str, option: str) -> tuple[str, Any]:
    value = (SGD if kind == "SGD" else ADAM)[option]
    return option.partition(",")[0], copy.deepcopy(value)


class Pair:
    """One of ours and torch's own of the same weights, in two groups each."""

    def __init__(
        self, kind: str, given: dict[str, Any], group: dict[str, Any], ours: dict[str, Any]
    ) -> None:
        self.weights: list[list[nn.Parameter]] = []
        self.optimizers: list[torch.optim.Optimizer] = []
        for home, more in ((znorm.optim, ours), (torch.optim, {})):
            generator = torch.Generator().manual_seed(0)
            weights = [nn.Parameter(torch.randn(s, generator=generator)) for s in ((4, 3), (5,))]
            groups = [{"params": weights[:1]}, {"params": weights[1:], **copy.deepcopy(group)}]
            options = {**BASES[kind], **copy.deepcopy(given), **more}
            self.weights.append(weights)
            self.optimizers.append(getattr(home, kind)(groups, **options))

    def step(self, number: int) -> None:
        for weights, optimizer in zip(self.weights, self.optimizers, strict=True):
            generator = torch.Generator().manual_seed(number + 1)
            for weight in weights:
                weight.grad = torch.randn(weight.shape, generator=generator)
            optimizer.step()


# What stands beside torch's own: a transform that changes nothing, so that kernels step; rounding,
# of weights that have nothing to round; neither.
OURS: dict[str, dict[str, Any]] = {
    "transform": {"transform": znorm.ClipNorm(1e9)},
    "rounding": {"stochastic_rounding": True},
    "neither": {},
}


def why_there_is_no_such_case(kind: str, name: str, way: str, ours: str) -> str | None:
    if ours == "rounding" and name in ("foreach", "fused"):
        return "these do not round"
    if name == "decoupled_weight_decay":
        if kind == "AdamW" and way == "given":
            return "AdamW takes no such argument"
        if name not in torch.optim.Adam([nn.Parameter(torch.zeros(1))]).defaults:
            return "this torch has no such option"
    if name == "amsgrad" and way.startswith("later"):
        return "torch's own step fails, whose states have no maximum"
    if name == "fused" and ours == "transform" and registry.backend_for() is None:
        return "fused=True asks for compiled kernels"
    return None


@pytest.mark.parametrize("ours", OURS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("kind", "option"), CASES)
def test_each_option_is_read_from_its_group(kind: str, option: str, way: str, ours: str) -> None:
    name, value = option.partition(",")[0], (SGD if kind == "SGD" else ADAM)[option]
    reason = why_there_is_no_such_case(kind, name, way, ours)
    if reason is not None:
        pytest.skip(reason)
    one = {name: value}
    pair = Pair(kind, one if way == "given" else {}, one if way == "group" else {}, OURS[ours])
    for number in range(6):
        if number == 3 and way == "checkpoint":
            other = Pair(kind, {}, one, {})
            for step in range(2):
                other.step(step)
            for optimizer in pair.optimizers:
                optimizer.load_state_dict(copy.deepcopy(other.optimizers[1].state_dict()))
        if number == 3 and way.startswith("later"):
            for optimizer in pair.optimizers:
                for group in optimizer.param_groups[1 if "group" in way else 0 :]:
                    group[name] = copy.deepcopy(value)
        pair.step(number)
    for mine, theirs in zip(*pair.weights, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=2e-6)
    for optimizer in pair.optimizers:
        assert all(name in group for group in optimizer.param_groups)


GRADIENT = [[-1.0, 1.0], [-1.0, 1.0]]


@pytest.mark.parametrize("rounds", [False, True])
@pytest.mark.parametrize("way", [*WAYS, "AdamW's checkpoint", "AdamW"])
def test_decoupled_decay_by_hand(way: str, rounds: bool) -> None:
    """1 - 0.1 * 0.5 = 0.95 of a weight of 1, and then a step of 0.1 up or down."""
    weight = nn.Parameter(torch.ones(2, 2))
    on = {"decoupled_weight_decay": True}
    if "decoupled_weight_decay" not in torch.optim.Adam([weight]).defaults and way != "AdamW":
        pytest.skip("this torch has no such option")
    make = znorm.optim.AdamW if way == "AdamW" else znorm.optim.Adam
    optimizer = make(
        [{"params": [weight], **(on if way == "group" else {})}],
        lr=0.1,
        weight_decay=0.5,
        transform=znorm.ZNorm(),
        stochastic_rounding=rounds,
        **(on if way == "given" else {}),
    )
    if "checkpoint" in way:
        kind = torch.optim.AdamW if "AdamW" in way else torch.optim.Adam
        more = {} if "AdamW" in way else on
        other = kind([nn.Parameter(torch.ones(2, 2))], lr=0.1, weight_decay=0.5, **more)
        optimizer.load_state_dict(other.state_dict())
    if "later" in way:
        optimizer.param_groups[0].update(on)
    weight.grad = torch.tensor(GRADIENT)
    optimizer.step()
    expected = torch.tensor([[1.05, 0.85], [1.05, 0.85]])
    torch.testing.assert_close(weight.detach(), expected, rtol=0, atol=1e-7)


def test_without_it_the_decay_is_in_the_gradient() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = znorm.optim.Adam([weight], lr=0.1, weight_decay=0.5, transform=znorm.ZNorm())
    weight.grad = torch.tensor(GRADIENT)
    optimizer.step()
    # (-1 + 0.5) and (1 + 0.5), whose sizes Adam's first step does not see.
    expected = torch.tensor([[1.1, 0.9], [1.1, 0.9]])
    torch.testing.assert_close(weight.detach(), expected, rtol=0, atol=1e-7)


def test_wider_weights_have_nothing_to_round() -> None:
    for make, options in ((znorm.optim.Adam, {}), (znorm.optim.SGD, {"momentum": 0.9})):
        weight = nn.Parameter(torch.ones(3))
        optimizer = make([weight], lr=0.1, stochastic_rounding=True, **options)
        weight.grad = -torch.ones(3)
        optimizer.step()
        assert weight.tolist() == torch.tensor([1.1, 1.1, 1.1]).tolist()


def test_rounding_says_that_amsgrad_came_too_late() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = znorm.optim.Adam([weight], stochastic_rounding=True)
    weight.grad = torch.ones(3)
    optimizer.step()
    optimizer.param_groups[0]["amsgrad"] = True
    with pytest.raises(ValueError, match="amsgrad=True was set after the first step"):
        optimizer.step()


@pytest.mark.parametrize("make", [torch.optim.SGD, znorm.optim.SGD, znorm.optim.Adam])
@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
def test_a_parameter_that_is_there_twice_is_transformed_once_and_stepped_on_twice(
    make: Any,
) -> None:
    # Cut off after the z-score: done twice, it would be another one.
    transform = znorm.chain(znorm.ZNorm(), znorm.ClipValue(1.0))
    weight, other = nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(2, 3))
    if make is torch.optim.SGD:
        optimizer = make([weight, other, weight], lr=0.1)
        znorm.attach(optimizer, transform)
    else:
        optimizer = make([weight, other, weight], lr=0.1, transform=transform)
    for single in (transform, znorm.ZNorm()):
        weight.grad = torch.arange(6.0).reshape(2, 3) ** 2
        once = weight.grad.clone()
        layout = znorm.Layout([once], single)
        transform_([once], layout)
        optimizer.step()
        assert torch.equal(weight.grad, once)
        # Then a transform that kernels take into the update.
        znorm.attachment_of(optimizer).detach()  # type: ignore[union-attr]
        znorm.attach(optimizer, znorm.ZNorm())
    attachment = znorm.attachment_of(optimizer)
    assert attachment is not None
    assert [row["shape"] for row in attachment.describe().rows] == [(2, 3), (2, 3)]
    twin = nn.Parameter(torch.zeros(2, 3))
    if make is not znorm.optim.Adam:
        reference = torch.optim.SGD([twin, twin], lr=0.1)
        for single in (transform, znorm.ZNorm()):
            twin.grad = torch.arange(6.0).reshape(2, 3) ** 2
            transform_([twin.grad], znorm.Layout([twin.grad], single))
            reference.step()
        torch.testing.assert_close(weight, twin, rtol=0, atol=1e-6)


def test_a_tensor_that_is_there_twice_is_named() -> None:
    weight = torch.zeros(2, 2)
    with pytest.raises(ValueError, match=r"entry 1 \(b\) is the tensor of entry 0 again"):
        znorm.Layout([("a", weight), ("b", weight)], znorm.ZNorm())
    layout = znorm.Layout([("a", weight), ("b", torch.zeros(2, 2))], znorm.ZNorm())
    gradient = torch.randn(2, 2)
    affine = znorm.decide(znorm.ZNorm(), znorm.measure([gradient, gradient], layout))
    with pytest.raises(ValueError, match="b: its gradient is the very tensor of a"):
        znorm.apply_([gradient, gradient], affine)
