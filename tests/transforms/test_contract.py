"""A transform of a user's own: one class of the base, and all that works with the built-in ones.

What is right is written out on Python floats here, by nothing of the library.
"""

from __future__ import annotations

import copy
import inspect
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import znorm
from znorm.kernels import registry
from znorm.moments import Affine, Moments
from znorm.selection import Select
from znorm.transforms import Transform


@dataclass(frozen=True)
class ClipDeviation(Transform):
    """Scale each output channel down to a standard deviation of at most ``threshold``."""

    threshold: float
    select: Select = "weights"
    granularity = "channel"
    is_clip = True

    def decide(self, moments: Moments, parameters: Moments | None = None) -> Affine:
        scale = (self.threshold / moments.std()).clamp(max=1.0)
        return Affine(torch.zeros_like(scale), scale)


class HalveAll(Transform):
    """Divide by twice the norm of all gradients together: not a dataclass, and global."""

    granularity = "global"

    def decide(self, moments: Moments, parameters: Moments | None = None) -> Affine:
        assert moments.count.numel() == 1
        scale = 0.5 / moments.norm()
        return Affine(torch.zeros_like(scale), scale)


class LikeWeights(Transform):
    """Scale each gradient to the norm of its weights."""

    select: Select = "weights"
    uses_parameters = True

    def decide(self, moments: Moments, parameters: Moments | None = None) -> Affine:
        assert parameters is not None
        scale = parameters.norm() / moments.norm()
        return Affine(torch.zeros_like(scale), scale)


class Signs(Transform):
    """The sign of each entry."""

    elementwise = True

    def apply_(self, gradient: Tensor) -> None:
        gradient.sign_()


@dataclass(frozen=True)
class Shrink(Transform):
    """Take ``by`` off each entry's size: an elementwise clip that no kernel knows."""

    by: float
    elementwise = True
    is_clip = True

    def apply_(self, gradient: Tensor) -> None:
        gradient.copy_(gradient.sign() * (gradient.abs() - self.by).clamp(min=0))


def deviation(values: list[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values))


def clipped(gradient: Tensor, threshold: float) -> Tensor:
    rows = gradient.flatten(1).tolist()
    found = [[v * min(1.0, threshold / deviation(row)) for v in row] for row in rows]
    return torch.tensor(found, dtype=torch.float64).reshape(gradient.shape)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.Linear(6, 5))


def give_gradients(model: nn.Module, seed: int = 1) -> list[Tensor]:
    torch.manual_seed(seed)
    gradients = [torch.randn_like(p) for p in model.parameters()]
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = gradient.clone()
    return gradients


def near(found: Tensor, right: Tensor) -> bool:
    return bool((found.double() - right.double()).abs().max() <= 1e-6 * right.abs().max())


def test_it_is_attached_to_any_optimizer_and_described() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    attachment = znorm.attach(optimizer, ClipDeviation(0.5), model=model)
    conv, bias, linear, _ = give_gradients(model)
    optimizer.step()
    written = [p.grad for p in model.parameters()]
    assert near(written[0], clipped(conv, 0.5))
    assert near(written[2], clipped(linear, 0.5))
    assert torch.equal(written[1], bias)
    rows = {row["name"]: row for row in attachment.describe().rows}
    assert rows["0.weight"]["why"] == "ClipDeviation by axis 0"
    assert rows["0.weight"]["units"] == 3
    assert rows["0.bias"]["why"] == "one dimension"


def test_receipts_count_where_it_clips() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    attachment = znorm.attach(optimizer, ClipDeviation(1.0), model=model)
    for size in (10.0, 1e-3):  # the second step clips nothing
        give_gradients(model)
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad.mul_(size)
        before = model[0].weight.grad.clone()
        optimizer.step()
    receipt = attachment.receipt()["0.weight"]
    assert receipt["clipped"] == 0.5
    assert receipt["steps"] == 2
    norms = [(before * 1e4).norm(), before.norm()]
    assert receipt["norm_before"] == pytest.approx(float(sum(norms)) / 2, rel=1e-5)


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD"])
def test_each_optimizer_takes_it_as_gradients_transformed_beforehand(name: str) -> None:
    options: dict[str, Any] = {"lr": 0.1} if name != "SGD" else {"lr": 0.1, "momentum": 0.9}
    ours, theirs = net(), net()
    optimizer = getattr(znorm.optim, name)(
        ours.parameters(), **options, transform=ClipDeviation(0.5), model=ours
    )
    plain = getattr(torch.optim, name)(theirs.parameters(), **options)
    for step in range(3):
        give_gradients(ours, step)
        conv, _, linear, _ = give_gradients(theirs, step)
        theirs[0].weight.grad = clipped(conv, 0.5).float()
        theirs[1].weight.grad = clipped(linear, 0.5).float()
        optimizer.step()
        plain.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert (one - other).abs().max() <= 2e-6
    served = registry.backend_for() is not None
    assert (optimizer.__dict__["_fused_step"] is not None) == served


def test_it_works_in_a_chain_with_what_is_built_in() -> None:
    model = net()
    chain = znorm.chain(ClipDeviation(0.5), HalveAll())
    assert repr(chain).startswith("chain(ClipDeviation(threshold=0.5, select='weights'), ")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    znorm.attach(optimizer, chain, model=model)
    gradients = give_gradients(model)
    gradients[0], gradients[2] = clipped(gradients[0], 0.5), clipped(gradients[2], 0.5)
    norm = math.sqrt(math.fsum(float(g.double().square().sum()) for g in gradients))
    optimizer.step()
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert near(parameter.grad, gradient * 0.5 / norm)


def test_one_that_compares_with_weights_gets_their_moments() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    transform = LikeWeights()
    znorm.attach(optimizer, transform, model=model)
    gradients = give_gradients(model)
    optimizer.step()
    weight = model[1].weight
    assert near(weight.grad, gradients[2] * (weight.detach().norm() / gradients[2].norm()))
    layout = znorm.Layout(model.named_parameters(), transform, model=model)
    moments = znorm.measure(gradients, layout)
    with pytest.raises(ValueError, match=r"holds LikeWeights, .* give their moments too"):
        znorm.decide(transform, moments)


@pytest.mark.parametrize(
    ("transform", "formula", "clips"),
    [
        (Signs(), lambda g: g.sign(), 0.0),
        (Shrink(0.1), lambda g: g.sign() * (g.abs() - 0.1).clamp(min=0), 1.0),
    ],
)
def test_an_elementwise_one_is_read_before_and_after(
    transform: Transform, formula: Callable[[Tensor], Tensor], clips: float
) -> None:
    model = net()
    optimizer = znorm.optim.SGD(model.parameters(), lr=1.0, transform=transform, model=model)
    weights = [p.detach().clone() for p in model.parameters()]
    gradients = give_gradients(model)
    optimizer.step()
    for parameter, weight, gradient in zip(model.parameters(), weights, gradients, strict=True):
        assert (parameter - (weight - formula(gradient))).abs().max() < 1e-6
    assert optimizer.attachment is not None
    receipt = optimizer.attachment.receipt()["0.weight"]
    assert receipt["clipped"] == clips
    assert receipt["norm_after"] == pytest.approx(float(formula(gradients[0]).norm()), rel=1e-5)


def test_in_backward_takes_one_by_channel_and_refuses_a_global_one() -> None:
    model, plain = nn.Linear(4, 3, bias=False), nn.Linear(4, 3, bias=False)
    plain.load_state_dict(model.state_dict())
    znorm.in_backward(model, lambda p: torch.optim.SGD(p, lr=0.1), ClipDeviation(0.01))
    inputs = torch.randn(5, 4)
    for one in (model, plain):
        one(inputs).square().sum().backward()
    right = plain.weight - 0.1 * clipped(plain.weight.grad, 0.01)
    assert near(model.weight.detach(), right.detach())
    with pytest.raises(ValueError, match=r"HalveAll.*needs all gradients at once"):
        znorm.in_backward(nn.Linear(2, 2), lambda p: torch.optim.SGD(p, lr=0.1), HalveAll())


def test_it_is_copied_and_pickled_with_its_optimizer() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    znorm.attach(optimizer, ClipDeviation(0.5), model=model)
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        attachment = znorm.attachment_of(other)
        assert attachment is not None
        assert attachment.transform == ClipDeviation(0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"select": 3}, r"Wrong: select must be .* found int 3"),
        ({"granularity": "row"}, "Wrong: granularity must be one of tensor, channel, global"),
    ],
)
def test_what_it_declares_is_checked(change: dict[str, Any], message: str) -> None:
    wrong = type("Wrong", (Transform,), change)()
    with pytest.raises((TypeError, ValueError), match=message):
        znorm.Layout([torch.zeros(2, 2)], wrong)


def test_what_is_no_transform_is_refused_with_the_base_that_it_needs() -> None:
    class Duck:
        select = "all"

        def decide(self, moments: Moments) -> None: ...

    for wrong in (Duck(), ClipDeviation, "ZNorm"):
        with pytest.raises(TypeError, match=r"the base znorm\.transforms\.Transform"):
            znorm.attach(torch.optim.SGD([nn.Parameter(torch.zeros(2))]), wrong)  # type: ignore[arg-type]


def test_what_decides_nothing_says_so() -> None:
    class Nothing(Transform):
        pass

    layout = znorm.Layout([torch.zeros(2, 2)], Nothing())
    moments = znorm.measure([torch.zeros(2, 2)], layout)
    with pytest.raises(NotImplementedError, match=r"Nothing decides nothing; give it a decide\(\)"):
        znorm.decide(layout.transform, moments)


def test_a_chain_warns_of_what_one_of_a_users_own_says_of_itself() -> None:
    class Standard(ClipDeviation):
        is_clip = False

        def resets(self) -> dict[str, Any]:
            return {"scale": ("std", 0)}

    with pytest.warns(UserWarning, match=r"ClipNorm.*has no effect.*sets their scale anew"):
        znorm.chain(znorm.ClipNorm(1.0, select="weights"), Standard(1.0))
    with pytest.warns(UserWarning, match=r"ZNorm.*sets their scale anew"):
        znorm.chain(Standard(1.0), znorm.ZNorm(granularity="channel"))


@pytest.fixture
def registered() -> Any:
    yield znorm.transforms.register(ClipDeviation)
    del znorm.transforms.TRANSFORMS["ClipDeviation"]


def test_a_registered_one_is_loaded_with_weights_only(registered: Any, tmp_path: Any) -> None:
    torch.save(ClipDeviation(0.5), tmp_path / "t.pt")
    assert torch.load(tmp_path / "t.pt", weights_only=True) == ClipDeviation(0.5)
    with pytest.raises(TypeError, match="expected a class of the base Transform"):
        znorm.transforms.register(nn.Linear)  # type: ignore[type-var]
    with pytest.raises(ValueError, match="ZNorm is the name of"):
        znorm.transforms.register(type("ZNorm", (Transform,), {}))


def example(name: str) -> Transform:
    """One of the table, with 0.1 for what has no default."""
    kind = znorm.transforms.TRANSFORMS[name]
    needed = [p.name for p in inspect.signature(kind).parameters.values() if p.default is p.empty]
    return kind(**dict.fromkeys(needed, 0.1))


def numbers_of(name: str) -> list[str]:
    transform = example(name)
    values = {field.name: getattr(transform, field.name) for field in fields(transform)}  # type: ignore[arg-type]
    return [field for field, value in values.items() if type(value) is float]


@pytest.mark.parametrize("name", znorm.transforms.TRANSFORMS)
def test_each_of_the_table_checks_what_it_is_made_with(name: str) -> None:
    kind, transform = type(example(name)), example(name)
    for field in numbers_of(name):
        for wrong, error in (("a", TypeError), (float("nan"), ValueError), (-1.0, ValueError)):
            with pytest.raises(error, match=rf"{name}: {field} must be"):
                replace(transform, **{field: wrong})  # type: ignore[type-var]
    with pytest.raises(ValueError, match=f"{name}: select must be"):
        replace(transform, select="nope")  # type: ignore[type-var]
    rules = replace(transform, select=[("head.*", False)])  # type: ignore[type-var]
    assert hash(rules) == hash(replace(rules))
    assert rules.with_select("all") == replace(transform, select="all")  # type: ignore[type-var]
    assert isinstance(kind.select, str)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", znorm.transforms.TRANSFORMS)
def test_each_of_the_table_hides_nothing_and_makes_nothing_up(
    name: str, dtype: torch.dtype
) -> None:
    transform = example(name)
    parameters = [nn.Parameter(torch.ones(3, 4, dtype=dtype)) for _ in range(3)]
    optimizer = torch.optim.SGD(parameters, lr=0.0)
    attachment = znorm.attach(optimizer, transform)
    parameters[0].grad = torch.full((3, 4), 2.0, dtype=dtype)  # constant
    parameters[1].grad = torch.zeros(3, 4, dtype=dtype)
    optimizer.step()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in parameters)
    receipt = attachment.receipt()
    assert {row["steps"] for row in receipt.values()} == {1}  # the third has no gradient
    assert len(receipt) == 2
    assert not any(row["clipped"] for row in receipt.values()) or transform.is_clip
    parameters[2].grad = torch.ones(3, 4, dtype=dtype)
    parameters[2].grad[1, 1] = torch.inf
    optimizer.step()
    assert parameters[2].grad is not None
    hidden = bool(parameters[2].grad.isfinite().all())
    assert bool(parameters[2].grad.isnan().all()) or (transform.elementwise and hidden)


@pytest.mark.parametrize("name", znorm.transforms.TRANSFORMS)
def test_each_of_the_table_is_data(name: str, tmp_path: Any) -> None:
    transform = example(name)
    assert copy.deepcopy(transform) == transform
    assert pickle.loads(pickle.dumps(transform)) == transform
    torch.save(transform, tmp_path / "transform.pt")
    assert torch.load(tmp_path / "transform.pt", weights_only=True) == transform
    assert repr(transform).startswith(f"{name}(")
