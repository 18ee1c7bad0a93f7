"""Constant, one-element, empty and non-finite gradients; missing ones; arguments that are wrong."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import znorm
from znorm.engine.execute import transform_
from znorm.kernels import registry

MEASURED: dict[str, znorm.transforms.Transform] = {
    "znorm": znorm.ZNorm(),
    "scale_only": znorm.ZNorm(center=False),
    "center_only": znorm.ZNorm(scale=False),
    "channel": znorm.ZNorm(granularity="channel"),
    "centralize": znorm.Centralize(),
    "unit_norm": znorm.UnitNorm(),
    "clip_norm": znorm.ClipNorm(0.1),
    "clip_global_norm": znorm.ClipGlobalNorm(0.1),
    "adaptive_clip": znorm.AdaptiveClip(0.01),
    "chain": znorm.chain(znorm.Centralize(), znorm.ZNorm(), znorm.ClipNorm(1.0)),
}
ZEROING = ["znorm", "scale_only", "center_only", "channel", "centralize", "chain"]


def run(transform: znorm.transforms.Transform, *gradients: Tensor | None) -> None:
    parameters = [
        torch.nn.Parameter(torch.zeros_like(g) if g is not None else torch.zeros(2, 2))
        for g in gradients
    ]
    optimizer = torch.optim.SGD(parameters)
    znorm.attach(optimizer, transform)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", ZEROING)
def test_a_constant_tensor_becomes_exactly_zero(name: str, dtype: torch.dtype) -> None:
    gradient = torch.full((37, 11), 0.1, dtype=dtype)
    run(MEASURED[name], gradient)
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_a_constant_channel_becomes_exactly_zero_and_the_others_do_not() -> None:
    gradient = torch.randn(5, 7)
    gradient[2] = 0.3
    run(znorm.Centralize(), gradient)
    assert not gradient[2].any()
    assert gradient[1].any()


def test_a_constant_channel_stays_exactly_zero_behind_other_links() -> None:
    # Its mean then is a rounded product of several coefficients, no longer an element itself.
    gradient = torch.randn(50, 7, dtype=torch.float64)
    gradient[::2] = torch.rand(25, 1, dtype=torch.float64)
    run(znorm.chain(znorm.ZNorm(), znorm.ClipNorm(0.7), znorm.Centralize()), gradient)
    assert not gradient[::2].any()
    assert gradient[1::2].all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [(0, 0), (3, 2)])
@pytest.mark.parametrize("name", MEASURED)
def test_a_tensor_with_nan_or_inf_becomes_nan_as_a_whole(
    name: str, position: tuple[int, int], bad: float
) -> None:
    gradient, other = torch.randn(5, 7), torch.randn(4, 3)
    gradient[position] = bad
    run(MEASURED[name], gradient, other)
    assert gradient.isnan().all()
    assert bool(other.isnan().all()) == (name == "clip_global_norm")
    assert name == "clip_global_norm" or other.isfinite().all()


def test_nan_in_a_tensor_that_is_not_selected_stays_there() -> None:
    gradient, bias = torch.randn(5, 7), torch.tensor([1.0, math.nan])
    run(znorm.chain(znorm.ZNorm(), znorm.ClipNorm(0.1)), gradient, bias)
    assert gradient.isfinite().all()
    gradient, bias = torch.randn(5, 7), torch.tensor([1.0, math.nan])
    run(znorm.ZNorm(), gradient, bias)
    assert bias[0] == 1.0


def test_clip_value_is_elementwise_for_nan_and_inf_too() -> None:
    gradient = torch.tensor([math.nan, math.inf, -3.0, 0.01])
    run(znorm.ClipValue(0.1), gradient)
    assert gradient[0].isnan()
    assert gradient[1:].tolist() == pytest.approx([0.1, -0.1, 0.01])


@pytest.mark.parametrize("shape", [(1,), (), (1, 1), (1, 1, 1, 1)])
@pytest.mark.parametrize("select", ["weights", "all", [(lambda name, p: True, True)]])
def test_one_element_is_left_alone_by_norms_and_centers(
    shape: tuple[int, ...], select: Any
) -> None:
    for transform in (
        znorm.ZNorm(select=select),
        znorm.UnitNorm(select=select),
        znorm.Centralize(select=select),
    ):
        gradient = torch.full(shape, 3.0)
        run(transform, gradient)
        assert gradient.flatten().tolist() == [3.0]
    row = znorm.Layout([torch.zeros(shape)], znorm.ZNorm(select=select)).describe().rows[0]
    assert (row["transformed"], row["why"]) == (False, "one element")


def test_one_element_is_clipped() -> None:
    for transform in (znorm.ClipNorm(0.1), znorm.ClipGlobalNorm(0.1), znorm.ClipValue(0.1)):
        gradient = torch.tensor([3.0])
        run(transform, gradient)
        assert gradient.item() == pytest.approx(0.1)


@pytest.mark.parametrize("name", MEASURED)
def test_empty_and_missing_gradients_change_nothing_for_the_others(name: str) -> None:
    alone = torch.randn(5, 7)
    beside = alone.clone()
    run(MEASURED[name], alone)
    run(MEASURED[name], torch.zeros(0, 4), None, beside)
    assert torch.equal(alone, beside)


def test_the_identity_writes_nothing() -> None:
    for transform in (znorm.chain(), None):
        gradient = torch.randn(5, 7)
        version = gradient._version
        run(transform, gradient)  # type: ignore[arg-type]
        assert gradient._version == version


def test_a_chain_equals_its_links_one_after_the_other() -> None:
    links = [
        znorm.Centralize(),
        znorm.ClipNorm(0.5, select="weights"),
        znorm.ZNorm(correction=1, granularity="channel"),
        znorm.ClipGlobalNorm(3.0),
        znorm.ClipValue(0.3),
        znorm.ZNorm(scale=False),
        znorm.UnitNorm(),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        chain = znorm.chain(*links)
    together = [torch.randn(6, 5, dtype=torch.float64) + 1, torch.randn(4, dtype=torch.float64)]
    apart = [g.clone() for g in together]
    run(chain, *together)
    for link in links:
        run(link, *apart)
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_chains_read_gradients_once_a_stage(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """In float32 by the compiled kernels, in float64 by the reference."""
    from znorm.kernels import reference, stacked

    reads: list[int] = []
    original = reference.moments

    def counting(gradient: Any, unit_dims: Any) -> Any:
        reads.append(gradient.numel())
        return original(gradient, unit_dims)

    together = stacked.moments

    def counting_together(views: Any, count: Any) -> Any:
        reads.extend(view.numel() for _, view in views)
        return together(views, count)

    monkeypatch.setattr(reference, "moments", counting)
    monkeypatch.setattr(stacked, "moments", counting_together)
    if dtype == torch.float32:
        plans = pytest.importorskip("znorm.kernels.cpu.plan")
        if registry.backend_for() is None:
            pytest.skip("the compiled kernels are turned off")
        # Tried out now, which runs plans of its own.
        assert registry.why_not(torch.device("cpu"), torch.float32) is None
        run_plan = plans.Plan.run

        def counting_run(self: Any, *arguments: Any, **named: Any) -> None:
            if self.measures:
                reads.extend(int(n) for _, _, n, _, _ in self.split)
                whole = (item for item in self.whole if item[4] >= 0)
                reads.extend(int(n * units) for _, _, n, units, _, _ in whole)
            run_plan(self, *arguments, **named)

        monkeypatch.setattr(plans.Plan, "run", counting_run)
    first, second = torch.randn(5, 7, dtype=dtype), torch.randn(3, 3, dtype=dtype)
    # Attached, with its receipt: each gradient once.
    run(znorm.chain(znorm.Centralize(), znorm.ZNorm(), znorm.ClipGlobalNorm(1.0)), first, second)
    assert sorted(reads) == [9, 35]
    reads.clear()
    run(znorm.ZNorm(), first, second)
    assert sorted(reads) == [9, 35]
    reads.clear()
    # Relative to the weights: these once, too.
    run(znorm.chain(znorm.Centralize(), znorm.AdaptiveClip(0.01)), first)
    assert reads == [35, 35]
    reads.clear()
    # Clamping ends a stage; without a receipt, which would compare.
    chain = znorm.chain(znorm.Centralize(), znorm.ClipValue(0.1), znorm.ZNorm())
    with torch.no_grad():
        transform_([first], znorm.Layout([first], chain))
    assert reads == [35, 35]


def test_chain_flattens_and_prints_its_order() -> None:
    nested = znorm.chain(znorm.chain(znorm.Centralize()), znorm.ClipValue(0.5))
    assert repr(nested) == (
        "chain(Centralize(select='weights'), ClipValue(threshold=0.5, select='all'))"
    )
    assert nested == znorm.chain(znorm.Centralize(), znorm.ClipValue(0.5))


def test_unit_norm_leaves_zeros_alone_without_an_epsilon_too() -> None:
    gradient = torch.zeros(3, 4)
    run(znorm.UnitNorm(eps=0), gradient)
    assert not gradient.any()


def test_a_bound_beyond_the_dtype_cuts_nothing_off() -> None:
    gradient = torch.tensor([6e4, -1.0], dtype=torch.float16)
    run(znorm.ClipValue(1e6), gradient)
    assert gradient.tolist() == [torch.tensor(6e4, dtype=torch.float16).item(), -1.0]


WRONG: list[tuple[Any, type[Exception], str]] = [
    (lambda: znorm.ZNorm(eps=-1), ValueError, "ZNorm: eps must be 0 or more, found -1"),
    (lambda: znorm.ZNorm(eps="x"), TypeError, "ZNorm: eps must be a number, found str 'x'"),
    (lambda: znorm.ZNorm(eps=True), TypeError, "eps must be a number"),
    (lambda: znorm.ZNorm(eps=math.nan), ValueError, "eps must be finite"),
    (lambda: znorm.ZNorm(eps=10**400), ValueError, "eps must be finite"),
    (lambda: znorm.ZNorm(center=1), TypeError, "center must be True or False, found int 1"),
    (lambda: znorm.ZNorm(correction=2), ValueError, "correction must be 0 or 1, found 2"),
    (lambda: znorm.ZNorm(correction=True), TypeError, "correction must be 0 or 1"),
    (lambda: znorm.ZNorm(granularity="row"), ValueError, "must be 'tensor' or 'channel'"),
    (lambda: znorm.ZNorm(select="conv"), ValueError, "select must be"),
    (lambda: znorm.ZNorm(select=3), TypeError, "select must be"),
    (lambda: znorm.ZNorm(select=["a"]), TypeError, "rule 0 must be"),
    (lambda: znorm.ZNorm(select=[(int, True)]), TypeError, "not a torch.nn.Module"),
    (lambda: znorm.ZNorm(select=[(3, True)]), TypeError, "rule 0 must be a name pattern"),
    (lambda: znorm.ClipNorm(0), ValueError, "ClipNorm: threshold must be greater than 0"),
    (lambda: znorm.ClipGlobalNorm(-1), ValueError, "ClipGlobalNorm: threshold"),
    (lambda: znorm.ClipValue("a"), TypeError, "ClipValue: threshold must be a number"),
    (lambda: znorm.UnitNorm(eps=math.inf), ValueError, "UnitNorm: eps must be finite"),
    (lambda: znorm.AdaptiveClip(0), ValueError, "AdaptiveClip: threshold must be greater than 0"),
    (lambda: znorm.AdaptiveClip(1, eps=-1), ValueError, "AdaptiveClip: eps must be 0 or more"),
    (lambda: znorm.Layers(0), ValueError, "Layers: parts must be 1 or more, found 0"),
    (lambda: znorm.Layers(()), ValueError, r"Layers: parts must hold a size, found \(\)"),
    (lambda: znorm.Layers((3, "a")), TypeError, "Layers: parts must be .* found str 'a'"),
    (lambda: znorm.Layers(True), TypeError, "Layers: parts must be .* found bool True"),
    (lambda: znorm.Layers(3, dim="x"), TypeError, "Layers: dim must be a number, found str"),
    (lambda: znorm.chain(znorm.ZNorm), TypeError, "chain: argument 0: .*the class ZNorm"),
    (lambda: znorm.chain(3), TypeError, "chain: argument 0: expected a transform"),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG)
def test_a_wrong_argument_is_named(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
