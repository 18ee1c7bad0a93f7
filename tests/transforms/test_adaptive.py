"""AdaptiveClip against its authors' formula and against another library."""

from __future__ import annotations

import math

import pytest
import torch
from pytorch_optimizer.optimizer.agc import agc
from torch import Tensor, nn

import znorm


def clip(weights: Tensor, gradient: Tensor, threshold: float, eps: float = 1e-3) -> Tensor:
    """Eq. 3 of Brock et al. on Python floats, by rows of dim 0."""
    rows = []
    for w, g in zip(weights.tolist(), gradient.flatten(1).tolist(), strict=True):
        flat = torch.tensor(w).flatten().tolist()
        weight_norm = max(math.sqrt(math.fsum(x * x for x in flat)), eps)
        norm = math.sqrt(math.fsum(x * x for x in g))
        scale = threshold * weight_norm / norm if norm / weight_norm > threshold else 1.0
        rows.append([x * scale for x in g])
    return torch.tensor(rows, dtype=torch.float64).reshape(gradient.shape)


@pytest.mark.parametrize("shape", [(5, 7), (4, 3, 3, 3), (6, 2, 5)])
def test_it_is_the_papers_formula_by_output_channel(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(shape, generator=generator)
    weights[-1] = 0  # its norm counts as eps
    gradient = torch.randn(shape, generator=generator) * torch.logspace(-3, 1, shape[0]).view(
        -1, *(1 for _ in shape[1:])
    )
    parameter = nn.Parameter(weights.clone())
    parameter.grad = gradient.clone()
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    attachment = znorm.attach(optimizer, znorm.AdaptiveClip(0.02))
    optimizer.step()
    expected = clip(weights.double(), gradient.double(), 0.02)
    error = (parameter.grad.double() - expected).abs().max()
    assert error <= 3e-7 * expected.abs().max()
    assert 0 < int((parameter.grad != gradient).flatten(1).any(1).sum()) < shape[0]
    (receipt,) = attachment.receipt().values()
    assert receipt["clipped"] == 1.0


def test_it_equals_pytorch_optimizer_up_to_its_epsilon() -> None:
    generator = torch.Generator().manual_seed(1)
    weights, gradient = torch.randn(2, 6, 4, 3, 3, dtype=torch.float64, generator=generator)
    parameter = nn.Parameter(weights.clone())
    parameter.grad = gradient.clone()
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    znorm.attach(optimizer, znorm.AdaptiveClip(0.01))
    optimizer.step()
    theirs = agc(weights, gradient, agc_eps=1e-3, agc_clip_val=0.01)
    torch.testing.assert_close(parameter.grad, theirs, rtol=1e-5, atol=0)


def test_a_vector_and_a_transposed_convolution() -> None:
    torch.manual_seed(0)
    model = nn.ConvTranspose2d(4, 6, 2, groups=2).double()
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    bias = model.bias
    assert bias is not None
    assert bias.grad is not None
    assert model.weight.grad is not None
    raw, raw_bias = model.weight.grad.clone(), bias.grad.clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    znorm.attach(optimizer, znorm.AdaptiveClip(0.01), model=model)
    optimizer.step()
    # Output channel c of group k is weight[2k : 2k + 2, c].
    for group in range(2):
        for channel in range(3):
            part = (slice(2 * group, 2 * group + 2), channel)
            w, g = model.weight.detach()[part].reshape(1, -1), raw[part].reshape(1, -1)
            expected = clip(w, g, 0.01).reshape(raw[part].shape)
            torch.testing.assert_close(model.weight.grad[part], expected, rtol=1e-9, atol=0)
    expected = clip(bias.detach()[None], raw_bias[None], 0.01)[0]
    torch.testing.assert_close(bias.grad, expected, rtol=1e-9, atol=0)


def test_zeros_all_around_stay_zeros() -> None:
    gradient, weights = torch.zeros(2, 2), torch.zeros(2, 2)
    transform = znorm.AdaptiveClip(0.01, eps=0)
    layout = znorm.Layout([weights], transform)
    decision = znorm.decide(
        transform, znorm.measure([gradient], layout), znorm.measure([weights], layout)
    )
    znorm.apply_([gradient], decision)
    assert not gradient.any()


def test_without_the_parameters_moments_it_says_what_to_give() -> None:
    gradient = torch.randn(2, 2)
    transform = znorm.chain(znorm.ZNorm(), znorm.AdaptiveClip(0.01))
    layout = znorm.Layout([gradient], transform)
    with pytest.raises(ValueError, match=r"parameters=znorm\.measure"):
        znorm.decide(transform, znorm.measure([gradient], layout))
