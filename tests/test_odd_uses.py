"""Uses that nobody plans for: each is right, or is refused by name, and none is silent."""

from __future__ import annotations

import copy
import threading
import types
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import SGD, Optimizer
from torch.testing._internal.two_tensor import TwoTensor

import oracle
import znorm
from kit import images, net

IMAGES = images()


def loss_of(model: nn.Module) -> Tensor:
    return (model(IMAGES) - 1).square().mean()


def deviation(model: Any, step: Any, rate: float = 0.1) -> float:
    """Of how far a step moved the first weights, over the learning rate: 1 of a z-score."""
    before = model[0].weight.detach().clone()
    step()
    return float(((before - model[0].weight.detach()) / rate).std(correction=0))


class Unhooked:
    """A mixin whose update torch has never put hooks around."""

    @torch.no_grad()
    def step(self: Any, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad, alpha=group["lr"])


class WithLoss(SGD):
    def step(self, loss: Any = None) -> Any:  # type: ignore[override]
        return super().step()


class WithFunction(SGD):
    def step(self, loss_fn: Any = None) -> Any:  # type: ignore[override]
        with torch.enable_grad():
            loss_fn()
        return super().step()


class WithBackward(SGD):
    model: nn.Module

    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            self.zero_grad()
            loss_of(self.model).backward()
        return super().step()


class CallsWithArguments(SGD):
    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = closure(backward=True)
        super().step()
        return loss


@pytest.mark.parametrize("kind", [WithLoss, WithFunction, WithBackward, CallsWithArguments])
def test_steps_that_are_called_in_another_way_are_transformed_once(kind: Any) -> None:
    model = net(2)
    optimizer = kind(model.parameters(), lr=0.1)
    optimizer.model = model
    attachment = znorm.attach(optimizer, znorm.ZNorm(), model=model)

    def closure(backward: bool = True) -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    for _ in range(3):
        closure()
        argument = {
            WithLoss: loss_of(model),
            WithFunction: closure,
            WithBackward: None,
            CallsWithArguments: closure,
        }[kind]
        assert deviation(model, lambda a=argument: optimizer.step(a)) == pytest.approx(1, abs=1e-4)
    if kind is WithFunction:
        closure()
        found = deviation(model, lambda: optimizer.step(loss_fn=closure))
        assert found == pytest.approx(1, abs=1e-4)
    assert attachment.receipt()["0.weight"]["norm_after"] == pytest.approx(48**0.5, rel=1e-4)


def test_a_step_that_takes_the_scaler_itself_is_refused() -> None:
    class Taking(Optimizer):
        _step_supports_amp_scaling = True

        def __init__(self, parameters: Any) -> None:
            super().__init__(parameters, {"lr": 0.1})

        def step(self, closure: Any = None, *, grad_scaler: Any = None) -> None:  # type: ignore[override]
            raise AssertionError("the step is not reached")

    model = net(2)
    optimizer = Taking(model.parameters())
    znorm.attach(optimizer, znorm.ZNorm())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(loss_of(model)).backward()
    with pytest.raises(RuntimeError, match="this step takes the GradScaler itself"):
        optimizer.step(grad_scaler=scaler)


def test_a_class_of_znorm_optim_with_a_step_of_its_own_is_transformed() -> None:
    class Mixed(Unhooked, znorm.optim.SGD):  # type: ignore[misc]
        pass

    class Calling(znorm.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    class Direct(znorm.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            return torch.optim.SGD.step(self, closure)

    for kind in (Mixed, Calling, Direct):
        model = net(2)
        optimizer = kind(model.parameters(), lr=0.1, transform=znorm.ZNorm(), model=model)
        loss_of(model).backward()
        assert deviation(model, optimizer.step) == pytest.approx(1, abs=1e-4), kind
        found = optimizer.attachment.receipt()["0.weight"]
        assert found["steps"] == 1, kind


def test_a_step_that_was_replaced_on_the_instance_is_said() -> None:
    model = net(2)
    optimizer = SGD(model.parameters(), lr=0.1)
    optimizer.step = types.MethodType(Unhooked.step, optimizer)  # type: ignore[method-assign]
    with pytest.warns(UserWarning, match="the step of this SGD has been replaced by another"):
        znorm.attach(optimizer, znorm.ZNorm())


class Lookahead(Optimizer):
    def __init__(self, base: Optimizer) -> None:
        self._optimizer_step_pre_hooks: Any = OrderedDict()
        self._optimizer_step_post_hooks: Any = OrderedDict()
        self._base, self.param_groups = base, base.param_groups
        self.state, self.defaults = base.state, base.defaults

    def step(self, closure: Any = None) -> Any:
        return self._base.step(closure)


def test_in_backward_refuses_a_wrapper_as_attach_does() -> None:
    with pytest.raises(TypeError, match=r"Lookahead wraps another one, .* \._base$"):
        znorm.in_backward(net(2), lambda p: Lookahead(SGD(p, lr=0.1)), znorm.ZNorm())


def test_what_is_attached_is_told_through_any_wrapper() -> None:
    base = SGD(net(2).parameters(), lr=0.1)
    wrapper = Lookahead(base)
    attachment = znorm.attach(base, znorm.ZNorm())
    assert znorm.attachment_of(wrapper) is attachment
    assert znorm.attachment_of(None) is None  # type: ignore[arg-type]


# Memory, and what kernels rest on.


def test_a_state_of_another_type_at_the_same_address_is_noticed() -> None:
    n = 100
    weight = nn.Parameter(torch.zeros(n, n))
    optimizer = znorm.optim.Adam([weight], transform=znorm.ZNorm())
    weight.grad = torch.randn(n, n)
    optimizer.step()
    pool = torch.zeros(2 * n * n)
    average = optimizer.state[weight]["exp_avg"]
    average.data = pool[: n * n].view(n, n)
    optimizer.step()
    average.data = pool.view(torch.bfloat16)[: n * n].view(n, n)
    rest = pool[n * n // 2 :]
    rest.fill_(7.0)
    with pytest.raises(RuntimeError):  # torch's own step does not take it either
        optimizer.step()
    assert (rest == 7).all()


def test_three_betas_raise_as_in_torch() -> None:
    weight = nn.Parameter(torch.zeros(4, 4))
    weight.grad = torch.randn(4, 4)
    for more in ({}, {"transform": znorm.ZNorm()}):
        optimizer = znorm.optim.Adam([weight], betas=(0.9, 0.999, 0.9999), **more)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="too many values to unpack"):
            optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_torchs_default_device_does_not_matter(dtype: torch.dtype) -> None:
    weight = nn.Parameter(torch.zeros(4, 3, dtype=dtype))
    weight.grad = torch.randn(4, 3, dtype=dtype)
    expected = oracle.whole(oracle.z_score, weight.grad)
    optimizer = SGD([weight], lr=0.1)
    torch.set_default_device("meta")
    try:
        znorm.attach(optimizer, znorm.ZNorm())
        optimizer.step()
    finally:
        torch.set_default_device("cpu")
    torch.testing.assert_close(weight.grad.double(), expected, rtol=0, atol=1e-6)


def test_a_later_gradient_of_a_dispatching_type_is_transformed_too() -> None:
    weight = nn.Parameter(torch.zeros(4, 4))
    optimizer = SGD([weight], lr=1.0)
    attachment = znorm.attach(optimizer, znorm.ZNorm())
    for wrapped in (False, True):
        raw = torch.randn(4, 4)
        weight.grad = TwoTensor(raw.clone(), raw.clone()) if wrapped else raw.clone()
        attachment.transform_gradients()
        gradient: Any = weight.grad
        found = gradient.a if wrapped else gradient
        expected = oracle.whole(oracle.z_score, raw)
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("transform", [znorm.Centralize(), znorm.ZNorm(), znorm.ClipNorm(0.1)])
def test_a_gradient_that_two_parameters_share_is_transformed_for_each(transform: Any) -> None:
    raw = torch.randn(4, 3) + 5
    shared = raw.clone()
    pair = [nn.Parameter(torch.zeros(4, 3)) for _ in range(2)]
    optimizer = SGD(pair, lr=1.0)
    znorm.attach(optimizer, transform)
    pair[0].grad = pair[1].grad = shared
    alone = raw.clone()
    single = nn.Parameter(torch.zeros(4, 3))
    reference = SGD([single], lr=1.0)
    znorm.attach(reference, transform)
    single.grad = alone
    optimizer.step()
    reference.step()
    for parameter in pair:
        assert torch.equal(parameter, single)


# Receipts, rules and names.


def test_receipts_follow_their_parameters_when_groups_change_places() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    groups = [{"params": [model[0].weight]}, {"params": [model[1].weight]}]
    optimizer = SGD(groups, lr=0.0)
    attachment = znorm.attach(optimizer, znorm.ClipNorm(1.0), model=model)
    for _ in range(2):
        model[0].weight.grad, model[1].weight.grad = torch.ones(4, 4), torch.full((4, 4), 100.0)
        optimizer.step()
        optimizer.param_groups.reverse()
    found = {name: values["norm_before"] for name, values in attachment.receipt().items()}
    assert found == {"0.weight": 4.0, "1.weight": 400.0}


def test_a_rule_may_outlive_the_group_that_it_was_for() -> None:
    model = net(2)
    optimizer = SGD([{"params": model[0].parameters()}, {"params": model[2].parameters()}], lr=0.1)
    znorm.attach(optimizer, znorm.ZNorm(select=[("2.*", False)]), model=model)
    optimizer.param_groups.pop()
    loss_of(model).backward()
    assert deviation(model, optimizer.step) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("rule", ["2.*", nn.Tanh], ids=str)
def test_a_parameter_outside_of_the_model_is_matched_by_no_name_or_type(rule: Any) -> None:
    model = net(2)
    temperature = nn.Parameter(torch.ones(3, 3))
    optimizer = SGD([*model.parameters(), temperature], lr=0.1)
    rules = [(rule, False), ("0.*", True)]
    if rule is nn.Tanh:
        with pytest.raises(ValueError, match="Tanh matches no parameter"):
            znorm.attach(optimizer, znorm.ZNorm(select=rules), model=model)
        return
    rows = znorm.attach(optimizer, znorm.ZNorm(select=rules), model=model).describe().rows
    assert [row["transformed"] for row in rows] == [True, True, False, False, True]


def test_functions_among_rules_get_the_bare_name() -> None:
    models = [net(2), net(2)]
    groups = [{"params": list(m.named_parameters())} for m in models]
    optimizer = SGD(groups, lr=0.1)
    rules = [(lambda name, parameter: name.startswith("2."), False)]
    rows = znorm.attach(optimizer, znorm.ZNorm(select=rules)).describe().rows
    assert [row["transformed"] for row in rows] == [True, False, False, False] * 2


def test_a_chain_warns_of_no_link_that_does_something(recwarn: pytest.WarningsRecorder) -> None:
    by_channel = znorm.ZNorm(center=False, granularity="channel")
    znorm.chain(by_channel, znorm.ZNorm(center=False))
    znorm.chain(znorm.ZNorm(granularity="channel", correction=1), znorm.ZNorm(correction=1))
    znorm.chain(znorm.ZNorm(correction=1), znorm.ZNorm(center=False))
    assert not recwarn.list
    with pytest.warns(UserWarning, match="has no effect"):
        znorm.chain(znorm.ZNorm(granularity="channel"), znorm.ZNorm())


def test_weights_are_not_taken_for_gradients() -> None:
    with pytest.raises(TypeError, match=r"entry 0 is a parameter, whose weights would be changed"):
        znorm.z_score_(net(2).parameters())


# Steps in backward.


def stepping(model: nn.Module) -> Any:
    return znorm.in_backward(model, lambda p: SGD(p, lr=0.1), znorm.ZNorm())


def test_a_module_whose_forward_is_not_called_is_trained_after_a_load_that_assigns() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    stepping(model)
    images = torch.randn(2, 3, 8)
    model(images).square().mean().backward()
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in range(3):
        (model(images) * torch.randn(8)).square().mean().backward()
    assert [name for name, p in model.named_parameters() if torch.equal(before[name], p)] == []
    assert all(p.grad is None for p in model.parameters())


def test_weights_lent_to_a_model_are_not_stepped_on() -> None:
    model = net(2)
    stepping(model)
    lent = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    kept = {name: p.detach().clone() for name, p in lent.items()}
    torch.func.functional_call(model, lent, (IMAGES,)).sum().backward()
    assert all(torch.equal(lent[name], kept[name]) for name in lent)
    assert lent["0.weight"].grad is not None
    fixed = {name: p.detach() for name, p in lent.items()}
    torch.func.functional_call(model, fixed, (IMAGES,))
    assert deviation(model, lambda: loss_of(model).backward()) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("mine", [False, True])
def test_the_backward_of_another_thread_is_not_this_ones(mine: bool) -> None:
    model = net(2)
    stepping(model)
    stop = threading.Event()

    def work() -> None:
        other = nn.Sequential(*[nn.Linear(200, 200) for _ in range(8)])
        scaler = torch.amp.GradScaler("cpu", enabled=not mine)
        while not stop.is_set():
            scaler.scale(other(torch.randn(32, 200)).square().mean()).backward()

    thread = threading.Thread(target=work)
    thread.start()
    scaler = torch.amp.GradScaler("cpu", enabled=mine)
    try:
        for _ in range(40):
            if mine:
                with pytest.raises(RuntimeError, match="scaled by a GradScaler"):
                    scaler.scale(loss_of(model)).backward()
                model.zero_grad()
            else:
                loss_of(model).backward()
    finally:
        stop.set()
        thread.join()


def test_a_step_in_backward_that_fails_leaves_no_gradient_behind() -> None:
    model = nn.Sequential(nn.Embedding(5, 4, sparse=True), nn.Linear(4, 2))
    stepping(model)
    for _ in range(2):
        with pytest.raises(ValueError, match="its gradient is sparse"):
            model(torch.tensor([1, 2])).sum().backward()
        model[1].zero_grad()


def test_a_parametrization_registered_later_is_no_other_parameter() -> None:
    class Doubled(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    model = net(2)
    optimizer = SGD(model.parameters(), lr=0.1)
    attachment = znorm.attach(optimizer, znorm.ZNorm(), model=model)
    parametrize.register_parametrization(model[0], "weight", Doubled())
    loss_of(model).backward()
    optimizer.step()
    assert len(attachment.receipt()) == 2


def test_a_model_that_is_gone_is_remembered_for_parameters_that_come_later() -> None:
    linear, norm = nn.Linear(4, 4), nn.LayerNorm((4, 4))
    optimizer = SGD(linear.parameters(), lr=0.1)
    attachment = znorm.attach(optimizer, znorm.ZNorm(), model=nn.ModuleList([linear, norm]))
    optimizer.add_param_group({"params": norm.parameters()})
    said = {row["name"]: row["why"] for row in attachment.describe().rows}
    assert said["1.weight"] == said["1.bias"] == "normalization (LayerNorm)"


def test_a_copy_says_that_it_does_not_know_new_parameters() -> None:
    linear, norm = nn.Linear(4, 4), nn.LayerNorm((4, 4))
    optimizer = SGD(linear.parameters(), lr=0.1)
    znorm.attach(optimizer, znorm.ZNorm(), model=nn.ModuleList([linear, norm]))
    other = copy.deepcopy(optimizer)
    other.add_param_group({"params": norm.parameters()})
    attachment = znorm.attachment_of(other)
    assert attachment is not None
    with pytest.warns(UserWarning, match="2 parameters are new to this copy of an optimizer"):
        attachment.describe()


def test_a_copy_says_nothing_of_what_the_model_never_held(recwarn: pytest.WarningsRecorder) -> None:
    linear, outside = nn.Linear(4, 4), nn.Parameter(torch.zeros(4, 4))
    optimizer = SGD([*linear.parameters(), outside], lr=0.1)
    znorm.attach(optimizer, znorm.ZNorm(), model=linear)
    attachment = znorm.attachment_of(copy.deepcopy(optimizer))
    assert attachment is not None
    assert not recwarn.list


def test_parameters_of_one_name_in_one_group_are_told_apart() -> None:
    one, other = nn.Linear(4, 4), nn.Linear(4, 4)
    optimizer = SGD([*one.named_parameters(), *other.named_parameters()], lr=0.1)  # type: ignore[list-item]
    attachment = znorm.attach(optimizer, znorm.ClipNorm(1.0))
    for scale, linear in ((1.0, one), (2.0, other)):
        linear.weight.grad = torch.full((4, 4), scale)
    optimizer.step()
    found = attachment.receipt()
    assert sorted(value["norm_before"] for value in found.values()) == [4.0, 8.0]
    names = [row["name"] for row in attachment.describe().rows]
    assert len(set(names)) == 4
    assert set(found) <= set(names)


@pytest.mark.parametrize("make", [SGD, znorm.optim.SGD], ids=["attached", "znorm.optim"])
def test_a_look_in_inference_mode_does_not_break_the_next_step(make: Any) -> None:
    model, more = net(2), nn.Linear(3, 3)
    optimizer = make(model.parameters(), lr=0.1)
    attachment = znorm.attach(optimizer, znorm.Centralize())
    optimizer.add_param_group({"params": more.parameters()})
    with torch.inference_mode():
        attachment.describe()
    loss_of(model).backward()
    optimizer.step()
    assert attachment.receipt()


def test_gradients_that_share_memory_are_each_transformed_once() -> None:
    one, other = (nn.Parameter(torch.zeros(4, 4)) for _ in range(2))
    optimizer = SGD([one, other], lr=1.0)
    znorm.attach(optimizer, znorm.Centralize())
    gradient = torch.arange(16.0).reshape(4, 4).square()
    one.grad = gradient.clone()
    other.grad = one.grad.t()
    optimizer.step()
    for parameter, given in ((one, gradient), (other, gradient.t())):
        wanted = -(given - given.mean(1, keepdim=True))
        torch.testing.assert_close(parameter.detach(), wanted)


@pytest.mark.parametrize("make", [SGD, znorm.optim.SGD], ids=["attached", "znorm.optim"])
def test_an_expanded_gradient_is_transformed(make: Any) -> None:
    parameter = nn.Parameter(torch.zeros(3, 4))
    optimizer = make([parameter], lr=1.0)
    znorm.attach(optimizer, znorm.ZNorm())
    parameter.grad = torch.arange(4.0).expand(3, 4)
    optimizer.step()
    wanted = -oracle.whole(oracle.z_score, torch.arange(4.0, dtype=torch.float64).expand(3, 4))
    torch.testing.assert_close(parameter.detach().double(), wanted, rtol=1e-5, atol=1e-6)


def test_a_name_with_brackets_is_matched_as_it_stands() -> None:
    held = nn.ParameterDict({"a[0]": torch.zeros(2, 2), "b": torch.zeros(2, 2)})
    rule = znorm.ZNorm(select=[("a[0]", False)])
    optimizer = SGD(held.parameters(), lr=0.1)
    attachment = znorm.attach(optimizer, rule, model=held)
    done = {row["name"]: row["transformed"] for row in attachment.describe().rows}
    assert done == {"a[0]": False, "b": True}


def test_what_is_attached_is_not_exchanged_by_an_assignment() -> None:
    attachment = znorm.attach(SGD(net(2).parameters(), lr=0.1), znorm.ZNorm())
    with pytest.raises(AttributeError):
        attachment.transform = znorm.Centralize()  # type: ignore[misc]


def test_weights_that_cannot_be_measured_are_named() -> None:
    parameter = nn.Parameter(TwoTensor(torch.ones(4, 4), torch.ones(4, 4)))
    optimizer = SGD([parameter], lr=0.1)
    znorm.attach(optimizer, znorm.AdaptiveClip(0.1))
    parameter.grad = torch.ones(4, 4)
    with pytest.raises(TypeError, match=r"group 0, parameter 0 .*those of Parameter|TwoTensor"):
        optimizer.step()
