"""A transform that is attached and does nothing says so."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import nn

import oracle
import znorm


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 1))


def backward(model: nn.Module) -> None:
    model.zero_grad()
    model(torch.randn(16, 6, generator=torch.Generator().manual_seed(1))).square().mean().backward()


def test_a_transform_that_acts_on_nothing_says_why_of_each_kind_of_tensor() -> None:
    shaped = nn.LayerNorm((2, 3))
    parameters = [nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(5))]
    optimizer = torch.optim.SGD([*parameters, *shaped.parameters()], lr=0.1)
    why = (
        r"ZNorm\(.*\) acts on none of the 4 parameters: 2 of one dimension; 2 of normalization "
        r"\(LayerNorm\)"
    )
    with pytest.warns(UserWarning, match=why) as told:
        znorm.attach(optimizer, znorm.ZNorm(), model=shaped)
    assert told[0].filename == __file__


def test_it_says_so_of_rules_of_lists_and_in_backward() -> None:
    model = net()
    nothing = znorm.ZNorm(select=[("*", False)])
    why = r"acts on none of the 6 parameters: 5 of rule 0 '\*'; 1 of one element"
    with pytest.warns(UserWarning, match=why):
        znorm.attach(torch.optim.SGD(model.parameters()), nothing, model=model)
    groups = [{"params": [p for p in model.parameters() if p.dim() == n]} for n in (1, 2)]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    with pytest.warns(UserWarning, match="none of the 4 parameters: 3 of one dimension; 1 of"):
        znorm.attach(optimizer, [znorm.ZNorm(), None])
    with pytest.warns(UserWarning, match=r"acts on none of the 6 parameters"):
        znorm.in_backward(model, lambda p: torch.optim.SGD(p, lr=0.1), nothing)
    with pytest.warns(UserWarning, match=r"acts on none of the 6 parameters"):
        znorm.optim.Adam(net().named_parameters(), transform=nothing)


@pytest.mark.parametrize("transform", [None, znorm.chain(), [znorm.ZNorm(), None]], ids=repr)
def test_what_is_not_meant_to_act_or_acts_somewhere_says_nothing(
    transform: Any, recwarn: pytest.WarningsRecorder
) -> None:
    model = net()
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": [model[0].weight]}, {"params": vectors}]
    optimizer = torch.optim.SGD(groups if isinstance(transform, list) else vectors, lr=0.1)
    znorm.attach(optimizer, transform)
    backward(model)
    optimizer.step()
    assert not recwarn.list


def made(kind: str, parameters: Any) -> Any:
    if kind == "attached":
        optimizer: Any = torch.optim.Adam(parameters)
        znorm.attach(optimizer, znorm.ZNorm())
        return optimizer
    return znorm.optim.Adam(parameters, transform=znorm.ZNorm())


@pytest.mark.parametrize("kind", ["attached", "znorm.optim"])
def test_the_first_gradients_being_others_than_it_acts_on_is_said_once(kind: str) -> None:
    model = net()
    for linear in (model[0], model[2]):
        linear.weight.requires_grad_(False)
    optimizer = made(kind, model.parameters())
    backward(model)
    with pytest.warns(UserWarning, match="acts on parameters that have no gradient") as told:
        optimizer.step()
    assert [warning.filename for warning in told] == [__file__]
    backward(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    assert znorm.attachment_of(optimizer).receipt() == {}  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["attached", "znorm.optim"])
def test_a_first_step_without_any_gradient_says_nothing(
    kind: str, recwarn: pytest.WarningsRecorder
) -> None:
    model = net()
    optimizer = made(kind, model.parameters())
    optimizer.step()
    backward(model)
    optimizer.step()
    assert not recwarn.list
    assert len(znorm.attachment_of(optimizer).receipt()) == 2  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["attached", "znorm.optim"])
def test_parameters_that_others_of_other_shapes_have_replaced_are_noticed(kind: str) -> None:
    model = net()
    optimizer = made(kind, model.parameters())
    backward(model)
    optimizer.step()
    flat = nn.Parameter(torch.cat([p.detach().flatten() for p in model.parameters()]))
    flat.grad = torch.randn_like(flat)
    optimizer.param_groups[0]["params"] = [flat]
    optimizer.state.clear()
    replaced = "6 parameters of the optimizer have been replaced by 1 of other shapes"
    idle = "acts on none of the 1 parameters: 1 of one dimension"
    with pytest.warns(UserWarning, match=replaced), pytest.warns(UserWarning, match=idle):
        optimizer.step()


@pytest.mark.parametrize("kind", ["attached", "znorm.optim"])
def test_parameters_that_others_of_the_same_shapes_replace_keep_their_names_and_rules(
    kind: str,
) -> None:
    model = net()
    rules = [("2.*", False)]
    transform = znorm.ZNorm(select=rules)
    if kind == "attached":
        optimizer: Any = torch.optim.SGD(model.named_parameters(), lr=0.1)
        attachment: Any = znorm.attach(optimizer, transform)
    else:
        optimizer = znorm.optim.SGD(model.named_parameters(), lr=0.1, transform=transform)
        attachment = optimizer.attachment
    del optimizer.param_groups[0]["param_names"]
    backward(model)
    optimizer.step()
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    optimizer.param_groups[0]["params"] = list(model.parameters())
    backward(model)
    raw = model[0].weight.grad.clone(), model[2].weight.grad.clone()
    before = model[0].weight.detach().clone(), model[2].weight.detach().clone()
    optimizer.step()
    first, last = (
        (old - linear.weight.detach()) / 0.1
        for old, linear in zip(before, (model[0], model[2]), strict=True)
    )
    expected = oracle.whole(oracle.z_score, raw[0])
    torch.testing.assert_close(first.double(), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(last, raw[1], rtol=0, atol=1e-5)
    assert attachment.receipt()["0.weight"]["steps"] == 2


def test_a_module_added_later_is_known_when_its_parameters_are_given_to_the_optimizer() -> None:
    model = nn.Sequential(nn.Linear(6, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attachment = znorm.attach(optimizer, znorm.Centralize(), model=model)
    model.add_module("up", nn.ConvTranspose1d(4, 6, 3))
    model.add_module("norm", nn.LayerNorm((2, 3)))
    added = [*model[1].parameters(), *model[2].parameters()]
    optimizer.add_param_group({"params": added})
    rows = {row["name"]: row for row in attachment.describe().rows}
    assert rows["up.weight"]["why"] == "Centralize by axis 1"
    assert rows["up.weight"]["units"] == 6
    assert rows["norm.weight"]["why"] == "normalization (LayerNorm)"


def test_a_parameter_moved_to_another_group_takes_that_groups_transform() -> None:
    weights = [nn.Parameter(torch.zeros(3, 4)) for _ in range(3)]
    groups = [{"params": weights[:2]}, {"params": weights[2:]}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    znorm.attach(optimizer, [znorm.ZNorm(), znorm.ClipNorm(0.5)])
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(3, 4, generator=generator) for _ in weights]
    for moves in (False, True):
        if moves:  # the order of all parameters stays
            optimizer.param_groups[1]["params"].insert(0, optimizer.param_groups[0]["params"].pop())
        for weight, gradient in zip(weights, given, strict=True):
            weight.grad = gradient.clone()
        optimizer.step()
        z = oracle.whole(oracle.z_score, given[1])
        clipped = given[1].double() * 0.5 / given[1].double().norm()
        assert weights[1].grad is not None
        expected = clipped if moves else z
        torch.testing.assert_close(weights[1].grad.double(), expected, rtol=0, atol=1e-6)


def test_each_of_a_list_and_of_a_chain_says_so() -> None:
    model = net()
    groups = [{"params": [p for p in model.parameters() if p.dim() == n]} for n in (1, 2)]
    clip = znorm.ClipNorm(1.0)
    with pytest.warns(UserWarning, match=r"group 0: ZNorm\(.*none of the 4 parameters: 3 of one"):
        znorm.attach(torch.optim.SGD(groups, lr=0.1), [znorm.ZNorm(), clip])
    groups = [{"params": []}, {"params": list(model.parameters())}]
    with pytest.warns(UserWarning, match=r"group 0: ZNorm\(.*since the group is empty"):
        znorm.attach(torch.optim.SGD(groups, lr=0.1), [znorm.ZNorm(), None])
    with pytest.warns(UserWarning, match=r"ZNorm\(.* of chain\(.*none of the 1 parameters"):
        znorm.attach(torch.optim.SGD([model[0].bias]), znorm.chain(znorm.ZNorm(), clip))
