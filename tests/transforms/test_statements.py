"""The paper's statements about the z-score, as properties; each test bears its statement's name.

Gradients are drawn on a grid in float64, so that their spread is either 0 or far above eps.
"""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import znorm

settings.register_profile("znorm", deadline=None, max_examples=200)
settings.load_profile("znorm")

GRADIENTS = st.lists(st.integers(-(10**6), 10**6), min_size=2, max_size=60).map(
    lambda values: torch.tensor(values, dtype=torch.float64) / 1000
)


def hat(gradient: Tensor) -> Tensor:
    result = gradient.clone()
    znorm.z_score_([result])
    return result


def mu(g: Tensor) -> float:
    return math.fsum(g.tolist()) / g.numel()


def sigma(g: Tensor) -> float:
    mean = mu(g)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in g.tolist()) / g.numel())


def is_constant(g: Tensor) -> bool:
    return bool((g == g[0]).all())


@given(GRADIENTS)
def test_lemma_4_1_inner_product(g: Tensor) -> None:
    """<g_hat, g> = (||g||^2 - n mu^2) / sigma = n sigma."""
    n, inner = g.numel(), math.fsum((hat(g) * g).tolist())
    if is_constant(g):
        assert inner == 0
        return
    size = n * (abs(mu(g)) + sigma(g))
    assert inner == pytest.approx(n * sigma(g), rel=1e-6, abs=1e-9 * size)
    by_norms = (math.fsum((g * g).tolist()) - n * mu(g) ** 2) / sigma(g)
    assert inner == pytest.approx(by_norms, rel=1e-6, abs=1e-9 * size * (1 + abs(mu(g))) / sigma(g))


@given(GRADIENTS)
def test_theorem_4_2_descent_direction(g: Tensor) -> None:
    """<g_hat, g> >= 0, and > 0 unless g is constant."""
    inner = math.fsum((hat(g) * (g - g[0])).tolist())  # g_hat sums to 0: the shift changes nothing
    assert inner == 0 if is_constant(g) else inner > 0


@given(GRADIENTS)
def test_corollary_norm_is_root_n(g: Tensor) -> None:
    """||g_hat|| = sqrt(n) as eps -> 0."""
    norm = float(torch.linalg.vector_norm(hat(g)))
    expected = 0.0 if is_constant(g) else math.sqrt(g.numel())
    assert norm == pytest.approx(expected, rel=1e-5)


@given(GRADIENTS)
def test_corollary_cosine(g: Tensor) -> None:
    """cos(g_hat, g) = sqrt(1 - n mu^2 / ||g||^2) = sigma / sqrt(sigma^2 + mu^2)."""
    if is_constant(g):
        return
    cosine = float(torch.nn.functional.cosine_similarity(hat(g), g, dim=0))
    assert cosine == pytest.approx(sigma(g) / math.hypot(sigma(g), mu(g)), abs=1e-7)
    n, square = g.numel(), math.fsum((g * g).tolist())
    assert cosine**2 == pytest.approx(1 - n * mu(g) ** 2 / square, abs=1e-7)


@given(GRADIENTS, st.sampled_from([0.5, 3.0, 1000.0]))
def test_corollary_invariant_to_positive_scale(g: Tensor, c: float) -> None:
    """ZNorm(c g) = ZNorm(g) for c > 0."""
    torch.testing.assert_close(hat(c * g), hat(g), rtol=1e-5, atol=1e-7)


@given(GRADIENTS, st.integers(-1000, 1000))
def test_corollary_invariant_to_shift(g: Tensor, c: int) -> None:
    """ZNorm(g + c) = ZNorm(g)."""
    torch.testing.assert_close(hat(g + c), hat(g), rtol=1e-5, atol=1e-6)


@given(st.integers(2, 50), st.sampled_from([1e-30, 0.1, 1.0, 12345.678, 1e30]))
def test_a_constant_gradient_becomes_zero(n: int, value: float) -> None:
    """The plain formula in float32 gives -0.99 everywhere: the mean's rounding exceeds eps."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        assert not hat(torch.full((n,), value, dtype=dtype)).any()
