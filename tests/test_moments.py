from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import oracle
import znorm
from znorm.moments import Affine, Moments


def measured(gradient: Tensor) -> Moments:
    return znorm.measure([gradient], znorm.Layout([gradient], znorm.ZNorm(select="all")))


def test_moments_are_float64_one_entry_a_unit_in_layout_order() -> None:
    gradients = [torch.randn(4, 3), torch.randn(6), torch.randn(2, 5)]
    layout = znorm.Layout(gradients, znorm.ZNorm(granularity="channel"))
    moments = znorm.measure(gradients, layout)
    assert moments.count.tolist() == [3.0] * 4 + [5.0] * 2
    assert {t.dtype for t in (moments.count, moments.mean, moments.m2)} == {torch.float64}
    for unit, row in enumerate([*gradients[0], *gradients[2]]):
        mean, std = oracle.moments(row.tolist())
        assert float(moments.mean[unit]) == pytest.approx(mean, rel=1e-12)
        assert float(moments.m2[unit]) == pytest.approx(std**2 * row.numel(), rel=1e-12)


@pytest.mark.parametrize("cut", [0, 1, 50, 99, 100])
def test_merge_is_exact(cut: int) -> None:
    values = torch.randn(100, dtype=torch.float64) + 1e5
    layout = znorm.Layout([values], znorm.ZNorm(select="all"))

    def part(piece: Tensor) -> Moments:
        if not piece.numel():
            return znorm.measure([None], layout)
        found = measured(piece) if piece.numel() > 1 else None
        if found is None:
            zero = torch.zeros(1, dtype=torch.float64)
            return Moments(zero + 1, piece.clone(), zero, layout)
        return found

    merged = part(values[:cut]).merge(part(values[cut:]))
    mean, std = oracle.moments(values.tolist())
    assert float(merged.count) == 100
    assert float(merged.mean) == pytest.approx(mean, rel=1e-15)
    assert float(merged.m2) == pytest.approx(100 * std**2, rel=1e-9)


def test_a_missing_side_leaves_the_other_to_the_bit() -> None:
    values = torch.randn(50)
    whole, nothing = measured(values), measured(values)
    nothing.count[:] = 0
    nothing.mean[:] = math.nan
    nothing.m2[:] = 0
    for merged in (whole.merge(nothing), nothing.merge(whole)):
        assert torch.equal(merged.mean, whole.mean)
        assert torch.equal(merged.m2, whole.m2)


def test_moments_that_were_reduced_decide_as_the_whole_would() -> None:
    left, right = torch.randn(30, 4), torch.randn(20, 4) + 3
    whole = torch.cat([left, right])
    layout = znorm.Layout([whole], znorm.ZNorm())
    moments = measured(left)
    moments.layout = layout
    moments = moments.merge(measured(right))
    expected = whole.clone()
    znorm.z_score_([expected])
    znorm.apply_([whole], znorm.decide(znorm.ZNorm(), moments))
    torch.testing.assert_close(whole, expected, rtol=1e-6, atol=1e-6)


def test_after_is_what_measuring_the_result_gives() -> None:
    gradient = torch.randn(40, dtype=torch.float64) + 3
    affine = Affine(torch.tensor([1.5], dtype=torch.float64), torch.tensor([-0.25]).double())
    predicted = measured(gradient).after(affine)
    again = measured((gradient - 1.5) * -0.25)
    torch.testing.assert_close(predicted.mean, again.mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(predicted.m2, again.m2, rtol=1e-12, atol=0)


def test_then_is_one_map_after_the_other() -> None:
    g = torch.randn(3, dtype=torch.float64)
    one = Affine(torch.randn(3).double(), torch.tensor([2.0, -3.0, 0.5]).double())
    two = Affine(torch.randn(3).double(), torch.randn(3).double())
    both = one.then(two)
    expected = ((g - one.center) * one.scale - two.center) * two.scale
    torch.testing.assert_close((g - both.center) * both.scale, expected, rtol=1e-12, atol=1e-14)


def test_pool_merges_units_exactly() -> None:
    gradient = torch.randn(6, 7) + 100
    units = znorm.measure([gradient], znorm.Layout([gradient], znorm.Centralize()))
    pooled = units.pool(torch.tensor([0, 0, 1, 1, 1, 1]), 2)
    for half, part in enumerate((gradient[:2], gradient[2:])):
        mean, std = oracle.moments(part.flatten().tolist())
        assert float(pooled.mean[half]) == pytest.approx(mean, rel=1e-14)
        assert float(pooled.m2[half]) == pytest.approx(std**2 * part.numel(), rel=1e-10)


def test_norm_is_the_euclidean_norm() -> None:
    gradient = torch.randn(90) + 2
    assert float(measured(gradient).norm()) == pytest.approx(
        math.sqrt(math.fsum(v * v for v in gradient.tolist())), rel=1e-12
    )


def test_what_does_not_fit_is_named() -> None:
    gradient = torch.randn(4, 3)
    layout = znorm.Layout([("w", gradient)], znorm.ZNorm())
    moments = znorm.measure([gradient], layout)
    with pytest.raises(ValueError, match="found 2 for the 1 parameters"):
        znorm.measure([gradient, gradient], layout)
    with pytest.raises(ValueError, match=r"w: its gradient has the shape \(3, 4\)"):
        znorm.measure([gradient.T], layout)
    with pytest.raises(ValueError, match="meta device"):
        znorm.measure([gradient.to("meta")], layout)
    with pytest.raises(ValueError, match="is not the ZNorm"):
        znorm.decide(znorm.UnitNorm(), moments)
    bare = Moments(torch.ones(2), torch.ones(2), torch.ones(2))
    with pytest.raises(ValueError, match="parameters: found 2 units for the 1 of the moments"):
        znorm.decide(znorm.ZNorm(), moments, parameters=bare)
    with pytest.raises(ValueError, match="no layout"):
        znorm.decide(znorm.ZNorm(), Moments(moments.count, moments.mean, moments.m2))
    with pytest.raises(ValueError, match="no layout"):
        znorm.apply_([gradient], Affine(moments.mean, moments.m2))
    two = Moments(torch.ones(2), torch.ones(2), torch.ones(2))
    with pytest.raises(ValueError, match="cannot merge 1 units with 2"):
        moments.merge(two)
    with pytest.raises(TypeError, match="put it in a list"):
        znorm.z_score_(gradient)
    with pytest.raises(TypeError, match="entry 0 must be a tensor"):
        znorm.Layout([3], znorm.ZNorm())  # type: ignore[list-item]


@pytest.mark.parametrize("position", [0, 1])
def test_a_chain_with_clip_value_cannot_be_decided_at_once(position: int) -> None:
    links: list[znorm.transforms.Transform] = [znorm.ZNorm()]
    links.insert(position, znorm.ClipValue(1.0))
    transform = znorm.chain(*links)
    gradient = torch.randn(4, 3)
    moments = znorm.measure([gradient], znorm.Layout([gradient], transform))
    with pytest.raises(ValueError, match="second reading"):
        znorm.decide(transform, moments)


def test_a_wrong_type_is_named() -> None:
    gradient = torch.randn(4, 3)
    transform = znorm.ZNorm()
    layout = znorm.Layout([("w", gradient)], transform)
    moments = znorm.measure([gradient], layout)
    wrong: list[Any] = [
        (lambda: znorm.measure([gradient], transform), "layout: expected .*, found ZNorm"),
        (lambda: znorm.measure([[1, 2]], layout), "w: its gradient must be a tensor, found list"),
        (lambda: znorm.measure([gradient.int()], layout), r"w: its gradient is torch\.int32"),
        (lambda: znorm.decide(transform, "x"), "moments: expected .*, found str"),
        (lambda: znorm.decide(123, moments), "expected a transform such as .*, found 123"),
        (lambda: znorm.decide(znorm.ZNorm, moments), "found the class ZNorm"),
        (lambda: znorm.apply_([gradient], moments), "affine: expected .*, found Moments"),
        (lambda: moments.merge("a"), "moments: expected others to merge, found str"),
        (lambda: znorm.z_score_([("a", gradient)]), "entry 0 must be a tensor, found tuple"),
    ]
    for call, message in wrong:
        with pytest.raises(TypeError, match=message):
            call()
    with pytest.raises(ValueError, match=r"chain\(\) is not the ZNorm"):
        znorm.decide(None, moments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_measuring_maps_over_examples(dtype: torch.dtype) -> None:
    layout = znorm.Layout([torch.zeros(4, 3)], znorm.ZNorm())
    examples = torch.randn(5, 4, 3, dtype=dtype)
    means = torch.func.vmap(lambda gradient: znorm.measure([gradient], layout).mean)(examples)
    assert (means[:, 0] - examples.double().mean((1, 2))).abs().max() <= 1e-15
