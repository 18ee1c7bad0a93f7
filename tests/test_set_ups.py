"""The set-ups that training scripts put an optimizer in, each held against the plain one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import oracle
import znorm
from kit import images, net

IMAGES = images()


def loss_of(model: nn.Module) -> Tensor:
    return (model(IMAGES) - IMAGES[:, :3]).square().mean()


def close(one: nn.Module, other: nn.Module, tolerance: float) -> None:
    for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=tolerance, msg=name)


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("pieces", [1, 4])
def test_accumulated_gradients_are_transformed_once(set_to_none: bool, pieces: int) -> None:
    whole, pieced = net(3), net(3)
    optimizers = [torch.optim.Adam(m.parameters(), lr=0.01) for m in (whole, pieced)]
    for m, o in zip((whole, pieced), optimizers, strict=True):
        znorm.attach(o, znorm.ZNorm(), model=m)
    for _ in range(3):
        whole.zero_grad()
        loss_of(whole).backward()
        optimizers[0].step()
        for part in IMAGES.chunk(pieces):
            loss = (pieced(part) - part[:, :3]).square().mean() / pieces
            loss.backward()
        optimizers[1].step()
        optimizers[1].zero_grad(set_to_none=set_to_none)
    close(whole, pieced, 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("unscale", [False, True])
def test_under_autocast_each_step_is_that_of_the_gradient_it_saw(
    dtype: torch.dtype, fused: bool, unscale: bool
) -> None:
    model, bare = net(3), net(3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused)
    reference = torch.optim.AdamW(bare.parameters(), lr=0.01, fused=fused)
    znorm.attach(optimizer, znorm.ZNorm(), model=model)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=dtype == torch.float16)
    for _ in range(4):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype):
            loss = loss_of(model)
        scaler.scale(loss).backward()
        scale = scaler.get_scale()
        for p, q in zip(model.parameters(), bare.parameters(), strict=True):
            assert p.grad is not None
            raw = p.grad.double() / scale
            q.grad = (raw if p.dim() < 2 else oracle.whole(oracle.z_score, raw)).float()
        reference.step()
        if unscale:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    close(model, bare, 1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weights_in_half_precision(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(30, 20, generator=generator).to(dtype)
    attached, bare = (nn.Parameter(weights.clone()) for _ in range(2))
    first, second = (torch.optim.SGD([p], lr=0.1, momentum=0.9) for p in (attached, bare))
    znorm.attach(first, znorm.ZNorm())
    for _ in range(3):
        gradient = (torch.randn(30, 20, generator=generator) * 1e-4).to(dtype)
        attached.grad = gradient.clone()
        bare.grad = oracle.whole(oracle.z_score, gradient).to(dtype)
        first.step()
        second.step()
    assert (attached == bare).double().mean() >= 0.999


def test_another_transform_for_each_parameter_group() -> None:
    model = net(3)
    groups = [
        {"params": model[0].parameters()},
        {"params": model[2].parameters(), "lr": 0.5},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    attachment = znorm.attach(optimizer, [znorm.ZNorm(), znorm.ClipGlobalNorm(0.01)], model=model)
    loss_of(model).backward()
    raw = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    optimizer.step()
    found = [p.grad for p in model.parameters() if p.grad is not None]
    torch.testing.assert_close(
        found[0].double(), oracle.whole(oracle.z_score, raw[0]), rtol=0, atol=1e-6
    )
    assert torch.equal(found[1], raw[1])
    # The norm is that of the group's own tensors.
    norm = torch.cat([raw[2].flatten(), raw[3]]).norm()
    for gradient, before in zip(found[2:], raw[2:], strict=True):
        torch.testing.assert_close(gradient, before * (0.01 / norm))
    assert [row["name"] for row in attachment.describe().rows] == list(
        dict(model.named_parameters())
    )
    assert set(attachment.receipt()) == {"0.weight", "2.weight", "2.bias"}
    late = nn.Parameter(torch.zeros(2, 2))
    late.grad = torch.ones(2, 2)
    optimizer.add_param_group({"params": [late]})
    with pytest.raises(ValueError, match="transform: found 2 for 3 parameter groups; detach"):
        optimizer.step()


@pytest.mark.parametrize("second", [None, znorm.chain()], ids=repr)
def test_under_a_fused_scaler_a_group_that_is_left_alone_is_unscaled_with_the_others(
    second: Any,
) -> None:
    plain, scaled = net(3), net(3)
    optimizers = [
        torch.optim.SGD(
            [{"params": m[0].parameters()}, {"params": m[2].parameters()}], lr=0.1, fused=True
        )
        for m in (plain, scaled)
    ]
    for m, o in zip((plain, scaled), optimizers, strict=True):
        znorm.attach(o, [znorm.ZNorm(), second], model=m)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for _ in range(3):
        plain.zero_grad()
        loss_of(plain).backward()
        optimizers[0].step()
        scaled.zero_grad()
        scaler.scale(loss_of(scaled)).backward()
        scaler.step(optimizers[1])
        scaler.update()
    close(plain, scaled, 1e-6)


def test_maximize_climbs_along_the_z_score() -> None:
    weights = torch.zeros(4, 5)
    gradient = torch.randn(4, 5)
    moved = []
    for maximize in (False, True):
        parameter = nn.Parameter(weights.clone())
        optimizer = torch.optim.SGD([parameter], lr=1.0, maximize=maximize)
        znorm.attach(optimizer, znorm.ZNorm())
        parameter.grad = gradient.clone()
        optimizer.step()
        moved.append(parameter.detach())
    assert torch.equal(moved[0], -moved[1])
    expected = oracle.whole(oracle.z_score, gradient)
    torch.testing.assert_close(moved[1].double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "transform",
    [
        znorm.ZNorm(),
        znorm.ZNorm(granularity="channel"),
        znorm.chain(znorm.Centralize(), znorm.UnitNorm(), znorm.ClipValue(0.3)),
    ],
    ids=["znorm", "channel", "chain"],
)
def test_a_differentiable_step_is_differentiated_through_the_transform(transform: Any) -> None:
    weights = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gradient = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def stepped(w: Tensor, g: Tensor) -> Tensor:
        parameter = w.clone()
        parameter.grad = g
        optimizer = torch.optim.SGD([nn.Parameter(w)], lr=0.1, differentiable=True)
        optimizer.param_groups[0]["params"] = [parameter]
        znorm.attach(optimizer, transform)
        optimizer.step()
        return parameter

    inputs = (weights.requires_grad_(), gradient.requires_grad_())
    assert torch.autograd.gradcheck(stepped, inputs)
    held = gradient.detach().clone()
    stepped(*inputs)
    assert torch.equal(gradient, held)  # replaced, not written


@pytest.mark.parametrize(
    "transform",
    [
        znorm.ZNorm(),
        znorm.UnitNorm(),
        znorm.ClipNorm(0.1),
        znorm.ClipGlobalNorm(0.1),
        znorm.AdaptiveClip(0.1),
        znorm.Centralize(),
    ],
    ids=str,
)
@pytest.mark.parametrize("constant", [0.0, 0.5])
def test_a_constant_gradient_has_no_nan_behind_it(transform: Any, constant: float) -> None:
    weights = torch.ones(3, 4, requires_grad=True)
    gradient = torch.full((3, 4), constant, requires_grad=True)
    parameter = weights.clone()
    parameter.grad = gradient
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(3, 4))], lr=0.1, differentiable=True)
    optimizer.param_groups[0]["params"] = [parameter]
    znorm.attach(optimizer, transform)
    optimizer.step()
    found = torch.autograd.grad(parameter.square().sum(), [weights, gradient])
    assert all(part.isfinite().all() for part in found)


def test_functional_training_by_measure_decide_apply() -> None:
    model, functional = net(3), net(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    transform = znorm.chain(znorm.ZNorm(), znorm.AdaptiveClip(0.5))
    znorm.attach(optimizer, transform, model=model)
    parameters = {name: p.detach() for name, p in functional.named_parameters()}
    layout = znorm.Layout(functional.named_parameters(), transform, model=functional)

    def loss(held: dict[str, Tensor]) -> Tensor:
        output = torch.func.functional_call(functional, held, (IMAGES,))
        return (output - IMAGES[:, :3]).square().mean()

    for _ in range(4):
        model.zero_grad()
        loss_of(model).backward()
        optimizer.step()
        gradients = list(torch.func.grad(loss)(parameters).values())
        moments = znorm.measure(gradients, layout)
        weights = znorm.measure(parameters.values(), layout)
        znorm.apply_(gradients, znorm.decide(transform, moments, parameters=weights))
        parameters = {
            name: p - 0.1 * g for (name, p), g in zip(parameters.items(), gradients, strict=True)
        }
    for p, q in zip(model.parameters(), parameters.values(), strict=True):
        torch.testing.assert_close(p.detach(), q, rtol=0, atol=1e-6)


@pytest.mark.parametrize("fused", [False, True])
def test_a_closure_together_with_a_grad_scaler_is_refused(fused: bool) -> None:
    model = net(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
    znorm.attach(optimizer, znorm.ZNorm())
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(loss_of(model)).backward()
    with pytest.raises(RuntimeError, match="closure: GradScaler cannot unscale"):
        scaler.step(optimizer, lambda: loss_of(model))
    # One that is switched off passes it on, as torch does.
    off = torch.amp.GradScaler("cpu", enabled=False)

    def closure() -> Tensor:
        model.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    off.step(optimizer, closure)


def test_fsdp1_is_refused() -> None:
    flat = nn.Parameter(torch.zeros(12))
    flat._is_flat_param = True  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match=r"group 0, parameter 0 \(12,\): a flat parameter of FSDP1"):
        znorm.attach(torch.optim.SGD([flat]), znorm.ZNorm(select="all"))

    class FullyShardedDataParallel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(2, 2)

    model = nn.Sequential(FullyShardedDataParallel())
    with pytest.raises(ValueError, match=r"model: 0 is wrapped in .* \(FSDP1\)"):
        znorm.attach(torch.optim.SGD(model.parameters()), znorm.ZNorm(), model=model)


def test_a_gradient_on_the_meta_device_is_named() -> None:
    parameter = nn.Parameter(torch.zeros(2, 2, device="meta"))
    optimizer = torch.optim.SGD([parameter])
    znorm.attach(optimizer, znorm.ZNorm())
    parameter.grad = torch.zeros(2, 2, device="meta")
    with pytest.raises(ValueError, match=r"group 0, parameter 0 \(2, 2\): .* meta device"):
        optimizer.step()


def test_the_same_tensor_twice_is_named() -> None:
    gradient = torch.randn(3)
    with pytest.raises(ValueError, match="entry 2 is the tensor of entry 0 again"):
        znorm.z_score_([gradient, torch.randn(3), gradient])
