"""Kernels take what lies in memory as they think it does; all else is torch's, or is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor

import oracle
import znorm
from znorm import kernels


def two(*shape: int) -> Tensor:
    return TwoTensor(torch.zeros(shape), torch.zeros(shape))


def test_a_parameter_whose_elements_lie_elsewhere_is_stepped_on_by_torch() -> None:
    parameter = nn.Parameter(two(8, 8))
    optimizer = znorm.optim.SGD([parameter], lr=0.5, transform=znorm.ZNorm())
    gradient = torch.randn(8, 8)
    parameter.grad = gradient.clone()
    optimizer.step()
    wanted = -0.5 * oracle.whole(oracle.z_score, gradient.double())
    for half in (parameter.a, parameter.b):  # type: ignore[attr-defined]
        torch.testing.assert_close(half.detach().double(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_a_state_whose_elements_lie_elsewhere_is_torchs(kind: str) -> None:
    parameter = nn.Parameter(torch.zeros(8, 8))
    optimizer: Any
    if kind == "adam":
        optimizer = znorm.optim.Adam([parameter], lr=0.1, transform=znorm.ZNorm())
        state = {"step": torch.tensor(1.0), "exp_avg": two(8, 8), "exp_avg_sq": two(8, 8)}
        names = ("exp_avg", "exp_avg_sq")
    else:
        optimizer = znorm.optim.SGD([parameter], lr=0.1, momentum=0.9, transform=znorm.ZNorm())
        state, names = {"momentum_buffer": two(8, 8)}, ("momentum_buffer",)
    optimizer.state[parameter] = state
    gradient = torch.randn(8, 8)
    parameter.grad = gradient.clone()
    optimizer.step()
    z = oracle.whole(oracle.z_score, gradient.double())
    wanted = {"exp_avg": 0.1 * z, "exp_avg_sq": 0.001 * z * z, "momentum_buffer": z}
    for name in names:
        for half in (state[name].a, state[name].b):  # type: ignore[attr-defined]
            torch.testing.assert_close(half.double(), wanted[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [znorm.optim.Adam, znorm.optim.AdamW, znorm.optim.SGD])
def test_fused_is_refused_where_torchs_kernel_would_mix_up_memory(kind: Any) -> None:
    if kernels.why_not(torch.device("cpu"), torch.float32) is not None:
        pytest.skip("fused=True is refused from the start without compiled kernels")
    conv = nn.Conv2d(3, 4, 5)
    options = {"momentum": 0.9} if kind is znorm.optim.SGD else {}
    optimizer = kind(
        conv.parameters(), lr=0.1, fused=True, transform=znorm.ZNorm(), model=conv, **options
    )
    images = torch.randn(2, 3, 8, 8)

    def backward() -> None:
        optimizer.zero_grad()
        conv(images).square().mean().backward()

    backward()
    optimizer.step()
    conv.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    backward()
    before = [p.detach().clone() for p in conv.parameters()]
    gradients = [p.grad.clone() for p in conv.parameters()]  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match=r"fused=True: .* parameter 0 of group 0 \(4, 3, 5, 5\)"):
        optimizer.step()
    for p, weights, gradient in zip(conv.parameters(), before, gradients, strict=True):
        assert torch.equal(p, weights)
        assert torch.equal(p.grad, gradient)  # type: ignore[arg-type]
    optimizer.param_groups[0]["fused"] = None
    optimizer.step()
    assert not torch.equal(conv.weight, before[0])


def test_a_gradient_that_is_read_with_its_sign_changed_is_recorded_so() -> None:
    parameter = nn.Parameter(torch.zeros(2, 3))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    attachment = znorm.attach(optimizer, None)
    values = torch.full((2, 3), 3.0)
    parameter.grad = values.clone()
    optimizer.step()
    parameter.grad = torch._neg_view(values.clone())
    optimizer.step()
    (found,) = attachment.receipt().values()
    assert found["mean"] == pytest.approx(0.0, abs=1e-12)
