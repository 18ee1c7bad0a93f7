"""Against other libraries, where those are right and as near as their epsilon lets them be."""

from __future__ import annotations

import pytest
import torch
from pytorch_optimizer.optimizer.gradient_centralization import centralize_gradient
from torch import Tensor, nn

import znorm


def apply(transform: znorm.transforms.Transform, gradients: list[Tensor]) -> None:
    layout = znorm.Layout(gradients, transform)
    znorm.apply_(gradients, znorm.decide(transform, znorm.measure(gradients, layout)))


@pytest.mark.parametrize("shape", [(8, 5), (8, 5, 3, 3), (4, 2, 3)])
def test_centralize_equals_pytorch_optimizer(shape: tuple[int, ...]) -> None:
    ours = torch.randn(shape, dtype=torch.float64) + 1
    theirs = ours.clone()
    apply(znorm.Centralize(), [ours])
    centralize_gradient(theirs)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_clip_global_norm_equals_torch_up_to_its_epsilon(size: float) -> None:
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in [(8, 5), (3,), ()]]
    for parameter in parameters:
        parameter.grad = size * torch.randn(parameter.shape)
    ours = [p.grad.clone() for p in parameters if p.grad is not None]
    norm = nn.utils.clip_grad_norm_(parameters, 0.1)
    apply(znorm.ClipGlobalNorm(0.1), ours)
    for mine, parameter in zip(ours, parameters, strict=True):
        assert parameter.grad is not None
        # torch divides by norm + 1e-6.
        tolerance = 1e-6 / float(norm) + 3e-7
        torch.testing.assert_close(mine, parameter.grad, rtol=tolerance, atol=0)


def test_clip_value_equals_torch_to_the_bit() -> None:
    parameter = nn.Parameter(torch.zeros(100))
    parameter.grad = torch.randn(100)
    theirs = parameter.grad.clone()
    optimizer = torch.optim.SGD([parameter])
    znorm.attach(optimizer, znorm.ClipValue(0.1))
    optimizer.step()
    reference = nn.Parameter(torch.zeros(100))
    reference.grad = theirs
    nn.utils.clip_grad_value_([reference], 0.1)
    assert torch.equal(parameter.grad, reference.grad)


def test_znorm_equals_torch_layer_norm_of_the_flattened_gradient() -> None:
    gradient = torch.randn(16, 9, dtype=torch.float64) + 2
    # layer_norm puts its epsilon under the root; 0 makes the two the same formula.
    expected = nn.functional.layer_norm(gradient, gradient.shape, eps=0.0)
    apply(znorm.ZNorm(), [gradient])
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)
