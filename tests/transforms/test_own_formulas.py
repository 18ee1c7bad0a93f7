"""What a transform declares and what it does: the formula counts, and wrong ones are named."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import znorm
from znorm.transforms import Transform
from znorm.transforms.base import ZScore


def half(moments: Any) -> znorm.Affine:
    return znorm.Affine(torch.zeros_like(moments.mean), torch.full_like(moments.mean, 0.5))


@dataclass(frozen=True)
class HalfZ(znorm.ZNorm):
    def decide(self, moments: Any, parameters: Any = None) -> znorm.Affine:
        return half(moments)


@dataclass(frozen=True)
class QuarterClamp(znorm.ClipValue):
    def apply_(self, gradient: Tensor) -> None:
        gradient.mul_(0.25)


class Silent(Transform):
    """One that says that it writes nothing, whatever it decides."""

    writes = False

    def decide(self, moments: Any, parameters: Any = None) -> znorm.Affine:
        return half(moments)


class WholeZ(Transform):
    """A formula over all layers, with a form that kernels have for one alone."""

    granularity = "global"

    def decide(self, moments: Any, parameters: Any = None) -> znorm.Affine:
        return znorm.Affine(moments.mean, 1 / moments.std())

    def fused_form(self) -> ZScore:
        return znorm.ZNorm(select="all").fused_form()  # type: ignore[return-value]


class Returning(Transform):
    def __init__(self, value: Any) -> None:
        self.value = value

    def decide(self, moments: Any, parameters: Any = None) -> Any:
        return self.value(moments)


class Misspelt(Transform):
    granularity = "chanel"


def stepped(transform: Transform, way: str) -> tuple[list[Tensor], list[Tensor], Any]:
    """The gradients, what a step of SGD at lr 1 takes for them, and the attachment."""
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in [(4, 3), (5,)]]
    named = [(f"p{number}", p) for number, p in enumerate(parameters)]
    if way == "attach":
        optimizer: Any = torch.optim.SGD(named, lr=1.0)
        attachment = znorm.attach(optimizer, transform)
    else:
        optimizer = znorm.optim.SGD(named, lr=1.0, transform=transform)
        attachment = optimizer.attachment
    gradients = [torch.randn(p.shape, generator=generator) + 1 for p in parameters]
    for p, g in zip(parameters, gradients, strict=True):
        p.grad = g.clone()
    optimizer.step()
    return gradients, [-p.detach() for p in parameters], attachment


@pytest.fixture(params=["attach", "optim"])
def way(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.mark.parametrize(
    ("transform", "factor"), [(HalfZ(select="all"), 0.5), (QuarterClamp(1e9), 0.25)]
)
@pytest.mark.parametrize("chained", [False, True])
def test_a_formula_of_ones_own_outweighs_an_inherited_form(
    transform: Transform, factor: float, chained: bool, way: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        used = znorm.chain(transform, znorm.ClipNorm(1e9)) if chained else transform
        before, after, _ = stepped(used, way)
    for g, h in zip(before, after, strict=True):
        torch.testing.assert_close(h, g * factor)


def test_a_global_formula_is_not_done_layer_by_layer(way: str) -> None:
    before, after, _ = stepped(WholeZ(), way)
    whole = torch.cat([g.reshape(-1) for g in before]).double()
    for g, h in zip(before, after, strict=True):
        exact = (g.double() - whole.mean()) / whole.std(correction=0)
        torch.testing.assert_close(h.double(), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chained", [False, True])
def test_what_writes_nothing_changes_nothing_and_says_so(chained: bool, way: str) -> None:
    used: Transform = znorm.chain(Silent(), znorm.ClipNorm(1e9)) if chained else Silent()
    before, after, attachment = stepped(used, way)
    for number, (g, h) in enumerate(zip(before, after, strict=True)):
        torch.testing.assert_close(h, g)
        receipt = attachment.receipt()[f"p{number}"]
        assert receipt["norm_after"] == pytest.approx(receipt["norm_before"])


@pytest.mark.parametrize("chained", [False, True])
@pytest.mark.parametrize(
    "value",
    [
        lambda m: None,
        lambda m: (0.0, 1.0),
        lambda m: znorm.Affine(0.0, 1.0),
        lambda m: znorm.Affine(m.mean[:1], m.mean[:1]),
        lambda m: znorm.Affine(m.mean[:, None], m.mean[:, None]),
        lambda m: znorm.Affine(torch.zeros(9), torch.zeros(9)),
    ],
)
def test_a_wrong_decision_names_the_class(value: Any, chained: bool, way: str) -> None:
    own = Returning(value)
    used: Transform = znorm.chain(znorm.Centralize(), own) if chained else own
    with pytest.raises(
        TypeError, match=r"^Returning\.decide: expected znorm\.Affine of two tensors"
    ):
        stepped(used, way)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
@pytest.mark.parametrize("chained", [False, True])
def test_decisions_of_other_types_are_converted(
    dtype: torch.dtype, chained: bool, way: str
) -> None:
    own = Returning(
        lambda m: znorm.Affine(
            torch.zeros_like(m.mean, dtype=dtype), torch.full_like(m.mean, 2, dtype=dtype)
        )
    )
    used: Transform = znorm.chain(znorm.Centralize(select=[("p0", False)]), own) if chained else own
    before, after, _ = stepped(used, way)
    torch.testing.assert_close(after[0], 2 * before[0])


def test_a_misspelt_granularity_is_named_in_a_chain() -> None:
    with pytest.raises(ValueError, match=r"Misspelt: granularity must be one of .* 'chanel'"):
        znorm.chain(Misspelt(), znorm.ZNorm())
