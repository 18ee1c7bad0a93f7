"""Optimizers inside of others: a transform runs or is refused by name, never silently absent.

Each pattern is written small here; `tests/frameworks` has the real ones.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

import oracle
import znorm
from kit import net


def backward(model: nn.Module) -> None:
    model.zero_grad()
    images = torch.randn(16, 6, generator=torch.Generator().manual_seed(1))
    (model(images) - images[:, :1]).square().mean().backward()


class Imitating:
    """Lightning's and Fabric's: of a class made on the spot that is also the inner one's."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self.__class__ = type(f"Light{type(optimizer).__name__}", (Imitating, type(optimizer)), {})

    @property
    def optimizer(self) -> Optimizer:
        return self._optimizer

    def step(self, closure: Any = None) -> Any:
        return self._optimizer.step() if closure is None else self._optimizer.step(closure)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)


class Copying(Imitating):
    """Lightning's of before: it also copies the attributes, the dicts of hooks among them."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.__dict__ = {k: v for k, v in vars(optimizer).items() if k != "step"}
        super().__init__(optimizer)


class Accelerated(Optimizer):
    """accelerate's: an Optimizer that has never been initialized."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    @property
    def param_groups(self) -> Any:
        return self.optimizer.param_groups

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure)


class OutsideOfTorch:
    """A wrapper that is no Optimizer at all, as DeepSpeed's mixed precision without shards."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    def step(self) -> None:
        self.optimizer.step()


class Initialized(Optimizer):
    """A wrapper that is an optimizer of torch's with hooks of its own around its step."""

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__(optimizer.param_groups, {})
        self.optimizer = optimizer

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure)


class Twice(Accelerated):
    """A wrapper around a wrapper."""

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__(Accelerated(optimizer))


SEEN_THROUGH = [Imitating, Copying, Accelerated, OutsideOfTorch, Initialized, Twice]


@pytest.mark.parametrize("wrapper", SEEN_THROUGH)
@pytest.mark.parametrize("make", [torch.optim.SGD, znorm.optim.SGD])
def test_attached_to_a_wrapper_that_is_known_the_transform_runs_once_a_step(
    wrapper: Any, make: Any
) -> None:
    model, plain = net(), net()
    optimizer = wrapper(make(model.parameters(), lr=0.1))
    attachment = znorm.attach(optimizer, znorm.ZNorm(), model=model)
    bare = torch.optim.SGD(plain.parameters(), lr=0.1)
    znorm.attach(bare, znorm.ZNorm())
    for _ in range(3):
        backward(model)
        optimizer.step()
        backward(plain)
        bare.step()
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    assert attachment.receipt()["0.weight"]["steps"] == 3
    assert znorm.attachment_of(optimizer) is attachment


@pytest.mark.parametrize("wrapper", SEEN_THROUGH)
@pytest.mark.parametrize("wrapper_first", [True, False])
def test_a_wrapper_and_what_is_inside_cannot_both_have_a_transform(
    wrapper: Any, wrapper_first: bool
) -> None:
    base = torch.optim.SGD(net().parameters(), lr=0.1)
    wrapped = wrapper(base)
    first, second = (wrapped, base) if wrapper_first else (base, wrapped)
    znorm.attach(first, znorm.ZNorm())
    with pytest.raises(ValueError, match=r"SGD has ZNorm.* attached already"):
        znorm.attach(second, znorm.ZNorm())


@pytest.mark.parametrize("wrapper", [Imitating, Accelerated])
def test_a_transform_attached_before_it_is_wrapped_runs_too(wrapper: Any) -> None:
    model = net()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    attachment = znorm.attach(base, znorm.ZNorm(), model=model)
    optimizer = wrapper(base)
    backward(model)
    optimizer.step()
    assert attachment.receipt()["2.weight"]["steps"] == 1


class Lookahead(Optimizer):
    """timm's pattern: dicts of hooks of its own, which its step does not run."""

    def __init__(self, base: Optimizer) -> None:
        self._optimizer_step_pre_hooks: Any = OrderedDict()
        self._optimizer_step_post_hooks: Any = OrderedDict()
        self._base_optimizer = base
        self.param_groups = base.param_groups
        self.defaults = base.defaults
        self.state = base.state

    def step(self, closure: Any = None) -> Any:
        return self._base_optimizer.step(closure)


class SAM(Optimizer):
    """Two steps of which neither is ``step``."""

    def __init__(self, parameters: Any, base: Callable[..., Optimizer]) -> None:
        super().__init__(parameters, {"rho": 0.05})
        self.base_optimizer = base(self.param_groups, lr=0.1)
        self.param_groups = self.base_optimizer.param_groups

    def step(self, closure: Any = None) -> None:
        raise NotImplementedError

    def first_step(self) -> None: ...

    def second_step(self) -> None:
        self.base_optimizer.step()


class LocalSGD(Optimizer):
    """torch's own ``PostLocalSGDOptimizer``: no dicts of hooks."""

    def __init__(self, optim: Optimizer) -> None:
        self.optim = optim
        self.param_groups = optim.param_groups

    def step(self, closure: Any = None) -> None:
        self.optim.step()


class ScheduleFree:
    """schedulefree's wrapper: no Optimizer, and another attribute."""

    def __init__(self, base: Optimizer) -> None:
        self.base = base


class Several(Optimizer):
    """An optimizer of several, as those that take matrices and vectors apart."""

    def __init__(self, *optimizers: Optimizer) -> None:
        self.optimizers = list(optimizers)
        self.param_groups = [group for one in optimizers for group in one.param_groups]

    def step(self, closure: Any = None) -> None:
        for one in self.optimizers:
            one.step()


@pytest.mark.parametrize(
    ("wrapper", "name"),
    [
        (Lookahead, "_base_optimizer"),
        (LocalSGD, "optim"),
        (ScheduleFree, "base"),
        (Several, "optimizers"),
    ],
)
def test_another_wrapper_is_refused_with_the_attribute_to_attach_to(
    wrapper: Any, name: str
) -> None:
    model = net()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapped = wrapper(base)
    found = rf"{wrapper.__name__} wraps another one, .* attach to the optimizer inside, \.{name}$"
    with pytest.raises(TypeError, match=found):
        znorm.attach(wrapped, znorm.ZNorm())
    # What the message says to do works.
    attachment = znorm.attach(base, znorm.ZNorm(), model=model)
    backward(model)
    if hasattr(wrapped, "step"):
        wrapped.step()
        assert attachment.receipt()["0.weight"]["steps"] == 1


def test_sam_is_refused_and_its_base_optimizer_is_not() -> None:
    model = net()
    optimizer = SAM(list(model.parameters()), torch.optim.SGD)
    with pytest.raises(TypeError, match=r"SAM wraps another one, .* \.base_optimizer$"):
        znorm.attach(optimizer, znorm.ZNorm())
    znorm.attach(optimizer.base_optimizer, znorm.ZNorm(), model=model)
    backward(model)
    assert model[0].weight.grad is not None
    raw = model[0].weight.grad.clone()
    optimizer.first_step()
    assert torch.equal(model[0].weight.grad, raw)
    optimizer.second_step()
    expected = oracle.whole(oracle.z_score, raw)
    torch.testing.assert_close(model[0].weight.grad.double(), expected, rtol=0, atol=1e-6)


def test_an_optimizer_that_refers_to_another_one_of_other_parameters_wraps_nothing() -> None:
    generator, critic = net(), net()
    one = torch.optim.SGD(generator.parameters(), lr=0.1)
    other = torch.optim.SGD(critic.parameters(), lr=0.1)
    one.other, other.optimizer = other, one  # type: ignore[attr-defined]
    attachments = [znorm.attach(o, znorm.ZNorm()) for o in (one, other)]
    for model, optimizer, attachment in zip(
        (generator, critic), (one, other), attachments, strict=True
    ):
        backward(model)
        optimizer.step()
        assert len(attachment.receipt()) == 2


def test_an_optimizer_whose_step_torch_has_not_hooked_is_refused() -> None:
    class Bare(Optimizer):
        def __init__(self, parameters: Any) -> None:
            self.param_groups = [{"params": list(parameters)}]
            self.state: Any = {}
            self.defaults = {}

        def step(self, closure: Any = None) -> None: ...

    with pytest.raises(TypeError, match=r"the step of Bare runs no hooks .* super\(\).__init__"):
        znorm.attach(Bare(net().parameters()), znorm.ZNorm())


def test_a_scheduler_that_wraps_the_step_of_an_instance_changes_nothing() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    step = optimizer.step
    optimizer.step = functools.wraps(step)(lambda *a: step(*a))  # type: ignore[method-assign]
    attachment = znorm.attach(optimizer, znorm.ZNorm(), model=model)
    backward(model)
    optimizer.step()
    assert attachment.receipt()["0.weight"]["steps"] == 1


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ([torch.optim.SGD([nn.Parameter(torch.zeros(2))])], "found list; attach to each of"),
        (torch.optim.SGD, "found SGD"),
        (None, "found NoneType"),
        (nn.Linear(2, 2), "found Linear; the model goes in model="),
    ],
)
def test_what_is_no_optimizer_is_named(given: Any, found: str) -> None:
    with pytest.raises(TypeError, match=rf"optimizer: expected a torch.optim.Optimizer, {found}"):
        znorm.attach(given, znorm.ZNorm())
