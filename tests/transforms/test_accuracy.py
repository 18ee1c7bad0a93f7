"""Every transform against formulas written out in float64, over shapes, layouts and ratios."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from torch import Tensor

import oracle
import znorm
from znorm.kernels import registry


@pytest.fixture(params=["in use", "reference"], autouse=True)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test by the kernels that are in use here, and by the reference kernels."""
    if request.param == "reference":
        monkeypatch.setattr(registry, "backend_for", lambda kind="cpu": None)


RATIOS = [0.0, 1.0, 1e2, 1e4, 1e6]
SHAPES = [(2,), (7, 5), (64, 3, 7, 7), (32, 16, 3, 3), (1, 300), (257, 129), (6, 5, 4, 3, 2)]

TRANSFORMS: dict[str, tuple[znorm.transforms.Transform, Callable[[Tensor], Tensor]]] = {
    "znorm": (znorm.ZNorm(select="all"), partial(oracle.whole, oracle.z_score)),
    "znorm_sample": (
        znorm.ZNorm(correction=1, select="all"),
        partial(oracle.whole, partial(oracle.z_score, correction=1)),
    ),
    "center_only": (
        znorm.ZNorm(scale=False, select="all"),
        partial(oracle.whole, oracle.center),
    ),
    "scale_only": (
        znorm.ZNorm(center=False, select="all"),
        partial(oracle.whole, oracle.scale_only),
    ),
    "znorm_channel": (
        znorm.ZNorm(granularity="channel"),
        partial(oracle.by_channel, oracle.z_score),
    ),
    "centralize": (znorm.Centralize(), partial(oracle.by_channel, oracle.center)),
    "unit_norm": (znorm.UnitNorm(select="all"), partial(oracle.whole, oracle.unit)),
    "clip_norm": (znorm.ClipNorm(0.1), partial(oracle.whole, partial(oracle.clip, threshold=0.1))),
    "clip_global_norm": (
        znorm.ClipGlobalNorm(0.1),
        partial(oracle.whole, partial(oracle.clip, threshold=0.1)),
    ),
    # Against weights of 0, whose norm counts as eps.
    "adaptive_clip": (
        znorm.AdaptiveClip(0.5, eps=2e-3),
        partial(oracle.by_channel, partial(oracle.clip, threshold=1e-3)),
    ),
    "clip_value": (
        znorm.ClipValue(0.5),
        partial(oracle.whole, partial(oracle.clamp, threshold=0.5)),
    ),
}


def memory_layouts(gradient: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The same values in memory formats that gradients come in."""
    yield "contiguous", gradient.clone()
    if gradient.dim() == 4:
        yield "channels_last", gradient.clone(memory_format=torch.channels_last)
    if gradient.dim() >= 2:
        yield "transposed", gradient.transpose(0, -1).clone().contiguous().transpose(0, -1)
    wide = torch.zeros(*gradient.shape[:-1], 2 * gradient.shape[-1], dtype=gradient.dtype)
    wide[..., ::2] = gradient
    yield "sliced", wide[..., ::2]


def gradients(dtype: torch.dtype, shape: tuple[int, ...], ratio: float) -> Tensor:
    generator = torch.Generator().manual_seed(hash((shape, ratio)) % 2**31)
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    return (1e-3 * (noise + ratio)).to(dtype)


def transformed(transform: znorm.transforms.Transform, gradient: Tensor) -> Tensor:
    parameter = torch.nn.Parameter(torch.zeros_like(gradient))
    optimizer = torch.optim.SGD([parameter])
    znorm.attach(optimizer, transform)
    parameter.grad = gradient
    optimizer.step()
    return gradient


def cases(name: str) -> list[tuple[int, ...]]:
    by_channel = name in ("znorm_channel", "centralize", "adaptive_clip")
    # A one-dimensional tensor has no channels of more than one element.
    return [shape for shape in SHAPES if len(shape) > 1 or not by_channel]


@pytest.mark.parametrize("name", TRANSFORMS)
def test_float32_is_within_3e_7_of_the_largest_entry(name: str) -> None:
    transform, formula = TRANSFORMS[name]
    for shape in cases(name):
        for ratio in RATIOS:
            gradient = gradients(torch.float32, shape, ratio)
            expected = formula(gradient)
            for layout, held in memory_layouts(gradient):
                error = (transformed(transform, held).double() - expected).abs().max()
                assert error <= 3e-7 * expected.abs().max(), (shape, ratio, layout)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_float64_is_within_1e_9_of_the_largest_entry(name: str) -> None:
    transform, formula = TRANSFORMS[name]
    for shape in cases(name):
        for ratio in RATIOS:
            gradient = gradients(torch.float64, shape, ratio)
            expected = formula(gradient)
            for layout, held in memory_layouts(gradient):
                error = (transformed(transform, held) - expected).abs().max()
                assert error <= 1e-9 * expected.abs().max(), (shape, ratio, layout)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_float64_rounded_once(dtype: torch.dtype) -> None:
    equal = total = 0
    for name, (transform, formula) in TRANSFORMS.items():
        for shape in cases(name):
            for ratio in RATIOS:
                gradient = gradients(dtype, shape, ratio)
                expected = formula(gradient).to(dtype)
                for _, held in memory_layouts(gradient):
                    result = transformed(transform, held)
                    equal += int((result == expected).sum())
                    total += result.numel()
    assert equal / total >= 0.999, f"{equal} of {total} entries equal"


def test_a_large_tensor_is_measured_in_chunks_and_stays_exact() -> None:
    gradient = gradients(torch.float32, (700, 401), 1e4)
    expected = oracle.whole(oracle.z_score, gradient)
    error = (transformed(znorm.ZNorm(), gradient).double() - expected).abs().max()
    assert error <= 3e-7 * expected.abs().max()


def test_one_far_element_does_not_spoil_the_statistics() -> None:
    # The first element shifts the sums: here it is the furthest from the mean that can be.
    gradient = gradients(torch.float32, (300, 301), 0.0)
    gradient[0, 0] = 1e4
    expected = oracle.whole(oracle.z_score, gradient)
    error = (transformed(znorm.ZNorm(), gradient).double() - expected).abs().max()
    assert error <= 3e-7 * expected.abs().max()


@pytest.mark.parametrize("std", [1e-30, 1e-24, 1e-16, 1.0, 1e16, 1e24, 1e36])
@pytest.mark.parametrize("n", [300, 300_001])
def test_gradients_whose_squares_leave_the_range_of_float32(std: float, n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    gradient = (std * torch.randn(n, generator=generator, dtype=torch.float64)).float()
    transform = znorm.ZNorm(eps=0.0, select="all")
    expected = oracle.whole(partial(oracle.z_score, eps=0.0), gradient)
    error = (transformed(transform, gradient).double() - expected).abs().max()
    assert error <= 3e-7 * expected.abs().max()


def test_values_whose_roundings_all_go_one_way() -> None:
    # Two values in turn, so that no rounding error of a sum in float32 makes up for another.
    gradient = torch.tensor([1.0] * 4 + [-1.0] * 4).repeat(1024) * 0.97612 + 2.01853
    expected = oracle.whole(oracle.z_score, gradient)
    result = transformed(znorm.ZNorm(select="all"), gradient.clone()).double()
    assert (result - expected).abs().max() <= 3e-7 * expected.abs().max()


def test_a_scale_that_float32_cannot_hold_is_infinite() -> None:
    gradient = torch.tensor([[1e-40, -1e-40], [2e-40, -2e-40]])
    result = transformed(znorm.ZNorm(eps=0.0), gradient)
    assert (result.isinf() & (result.sign() == torch.tensor([[1, -1], [1, -1]]))).all()


def test_a_sum_that_float32_cannot_hold() -> None:
    gradient = 1e37 * (torch.rand(500, 2, generator=torch.Generator().manual_seed(0)) + 30)
    assert not torch.isfinite(gradient.mean())
    expected = oracle.whole(oracle.z_score, gradient)
    error = (transformed(znorm.ZNorm(), gradient).double() - expected).abs().max()
    assert error <= 3e-7 * expected.abs().max()


def test_the_global_norm_is_that_of_all_tensors() -> None:
    shapes = [(64, 3, 7, 7), (64,), (1,), ()]
    given = [gradients(torch.float32, shape, 1.0) for shape in shapes]
    flat = torch.cat([g.double().flatten() for g in given])
    expected = oracle.whole(partial(oracle.clip, threshold=1e-2), flat)
    parameters = [torch.nn.Parameter(torch.zeros_like(g)) for g in given]
    optimizer = torch.optim.SGD(parameters)
    znorm.attach(optimizer, znorm.ClipGlobalNorm(1e-2))
    for parameter, gradient in zip(parameters, given, strict=True):
        parameter.grad = gradient
    optimizer.step()
    result = torch.cat([g.double().flatten() for g in given])
    assert (result - expected).abs().max() <= 3e-7 * expected.abs().max()


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_transposed_convolution_is_centralized_by_its_output_channels(groups: int) -> None:
    net = torch.nn.ConvTranspose2d(8, 12, 3, groups=groups, bias=False)
    gradient = torch.randn_like(net.weight) + 5
    # Output channel o = (group, j) is made of the weights [inputs of the group, j].
    expected = gradient.double().clone()
    inputs = 8 // groups
    for group in range(groups):
        for j in range(12 // groups):
            rows = slice(group * inputs, (group + 1) * inputs)
            expected[rows, j] = oracle.whole(oracle.center, gradient[rows, j])
    layout = znorm.Layout(net.named_parameters(), znorm.Centralize(), model=net)
    assert layout.units == 12
    moments = znorm.measure([gradient], layout)
    znorm.apply_([gradient], znorm.decide(znorm.Centralize(), moments))
    assert (gradient.double() - expected).abs().max() <= 3e-7 * expected.abs().max()


@pytest.mark.parametrize(
    "module",
    [
        torch.nn.Linear(7, 5),
        torch.nn.Conv1d(6, 4, 3, groups=2),
        torch.nn.Conv2d(6, 4, 3),
        torch.nn.Conv3d(2, 3, 2),
        torch.nn.Embedding(9, 4),
    ],
    ids=lambda module: type(module).__name__,
)
def test_the_output_axis_of_other_layers_is_the_first(module: torch.nn.Module) -> None:
    weight = dict(module.named_parameters())["weight"]
    gradient = torch.randn_like(weight) + 3
    expected = oracle.by_channel(oracle.center, gradient)
    layout = znorm.Layout([("weight", weight)], znorm.Centralize(), model=module)
    moments = znorm.measure([gradient], layout)
    znorm.apply_([gradient], znorm.decide(znorm.Centralize(), moments))
    assert (gradient.double() - expected).abs().max() <= 3e-7 * expected.abs().max()


@pytest.mark.parametrize("wrap", ["spectral_norm", "weight_norm"])
@pytest.mark.parametrize("groups", [1, 2])
def test_the_axis_of_a_parametrized_transposed_convolution_is_that_of_its_weight(
    wrap: str, groups: int
) -> None:
    net = torch.nn.ConvTranspose2d(4, 6, 3, groups=groups, bias=False)
    net = getattr(torch.nn.utils.parametrizations, wrap)(net)
    rows = znorm.Layout(net.named_parameters(), znorm.Centralize(), model=net).describe().rows
    weight = next(row for row in rows if row["shape"] == (4, 6 // groups, 3, 3))
    assert (weight["units"], weight["why"]) == (6, "Centralize by axis 1")


def test_another_parameter_of_a_transposed_convolution_has_its_own_axis() -> None:
    class Gated(torch.nn.ConvTranspose2d):
        def __init__(self) -> None:
            super().__init__(4, 6, 3, groups=2)
            self.gate = torch.nn.Parameter(torch.zeros(3, 4))

    net = Gated()
    rows = znorm.Layout(net.named_parameters(), znorm.Centralize(), model=net).describe().rows
    assert {row["name"]: row["units"] for row in rows} == {"weight": 6, "bias": 0, "gate": 3}
