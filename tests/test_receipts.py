"""Receipts against the same numbers computed from the gradients themselves."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import znorm
from znorm import receipts
from znorm.attachment import attachment_of
from znorm.engine.comparison import Kept
from znorm.engine.decide import decide
from znorm.engine.receipts import Receipt
from znorm.kernels import registry


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(3, 6, 2), nn.Flatten(), nn.Linear(18, 12), nn.Linear(12, 1))


def backward(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    model.zero_grad()
    (10 * model(torch.randn(8, 3, 4, generator=generator))).square().mean().backward()


def by_hand(before: Tensor, after: Tensor) -> dict[str, float]:
    g, h = before.double().flatten(), after.double().flatten()
    return {
        "norm_before": float(g.norm()),
        "norm_after": float(h.norm()),
        "mean": float(g.mean()),
        "std": float(g.std(correction=0)),
        "cosine": float(torch.nn.functional.cosine_similarity(g, h, dim=0)),
    }


CHAINS: dict[str, Any] = {
    "znorm": lambda: znorm.ZNorm(),
    "channel": lambda: znorm.ZNorm(granularity="channel"),
    "centralize, clip": lambda: znorm.chain(znorm.Centralize(), znorm.ClipNorm(0.5)),
    "global": lambda: znorm.ClipGlobalNorm(0.5),
    "adaptive": lambda: znorm.AdaptiveClip(0.1),
    "value": lambda: znorm.ClipValue(0.05),
    "znorm, value": lambda: znorm.chain(znorm.ZNorm(), znorm.ClipValue(1.0)),
    "value, znorm": lambda: znorm.chain(znorm.ClipValue(0.05), znorm.Centralize()),
    "clip, value": lambda: znorm.chain(znorm.ClipNorm(2.0), znorm.ClipValue(0.05)),
    "layers": lambda: znorm.ZNorm(select=[("2.*", znorm.Layers(3))]),
    "observe": lambda: None,
}


@pytest.mark.parametrize("name", CHAINS)
def test_means_over_the_steps_of_what_happened_to_each_tensor(name: str) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    attachment = znorm.attach(optimizer, CHAINS[name](), model=model)
    assert attachment.receipt() == {}
    expected: dict[str, list[dict[str, float]]] = {}
    for step in range(4):
        backward(model, step)
        before = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        optimizer.step()
        for n, p in model.named_parameters():
            assert p.grad is not None
            expected.setdefault(n, []).append(by_hand(before[n], p.grad))
    found = attachment.receipt()
    transformed = [row["name"] for row in attachment.describe().rows if row["transformed"]]
    assert list(found) == (transformed or [n for n, _ in model.named_parameters()])
    for n, values in found.items():
        assert list(values) == [*receipts.FIELDS, "steps"]
        assert values["steps"] == 4
        for field in by_hand(torch.ones(2), torch.ones(2)):
            mean = sum(one[field] for one in expected[n]) / 4
            assert values[field] == pytest.approx(mean, rel=1e-5, abs=1e-7), (n, field)


@pytest.mark.parametrize(
    "transform",
    [
        znorm.ClipNorm(1.0),
        znorm.ClipGlobalNorm(1.0),
        znorm.ClipValue(0.9),
        znorm.chain(znorm.ClipNorm(1.0), znorm.ClipValue(5.0)),
    ],
    ids=repr,
)
def test_clipped_is_the_share_of_steps_in_which_a_clip_acted(transform: Any) -> None:
    parameter = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    attachment = znorm.attach(optimizer, transform)
    for entry in (3.0, 0.1, 0.2, 4.0, 0.3):
        parameter.grad = torch.tensor([entry, 0.0])
        optimizer.step()
    (values,) = attachment.receipt().values()
    assert values["clipped"] == pytest.approx(0.4)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("transform", [znorm.ZNorm(), znorm.ClipValue(0.01), None], ids=repr)
def test_the_loss_scale_is_no_part_of_it_and_skipped_steps_are_not_counted(
    transform: Any, fused: bool
) -> None:
    plain, scaled = net(), net()
    first = torch.optim.SGD(plain.parameters(), lr=0.01)
    second = torch.optim.SGD(scaled.parameters(), lr=0.01, fused=fused)
    one = znorm.attach(first, transform, model=plain)
    two = znorm.attach(second, transform, model=scaled)
    scaler = torch.amp.GradScaler("cpu", init_scale=4096.0)
    for step in range(4):
        backward(plain, step)
        backward(scaled, step)
        overflows = step == 2
        for p in scaled.parameters():
            assert p.grad is not None
            p.grad *= torch.inf if overflows else float(scaler.scale(torch.ones(())))
        if not overflows:
            first.step()
        scaler.step(second)
        scaler.update(4096.0)
    for (name, expected), (other, found) in zip(
        one.receipt().items(), two.receipt().items(), strict=True
    ):
        assert name == other
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-8)
        assert found["steps"] == 3
    for p, q in zip(plain.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)


def test_observing_writes_nothing_and_says_so() -> None:
    model, bare = net(), net()
    optimizer, other = (torch.optim.Adam(m.parameters()) for m in (model, bare))
    attachment = znorm.attach(optimizer, None, model=model)
    assert {row["why"] for row in attachment.describe().rows} == {"observed only"}
    assert not any(row["transformed"] for row in attachment.describe().rows)
    for step in range(3):
        for m, o in ((model, optimizer), (bare, other)):
            backward(m, step)
            o.step()
    for p, q in zip(model.parameters(), bare.parameters(), strict=True):
        assert torch.equal(p, q)
    assert all(values["cosine"] == pytest.approx(1) for values in attachment.receipt().values())


def test_a_missing_gradient_is_no_step_of_that_tensor_and_a_group_added_later_joins() -> None:
    one, two, late = (nn.Parameter(torch.zeros(2, 3)) for _ in range(3))
    optimizer = torch.optim.SGD([{"params": [one, two]}], lr=0.0)
    attachment = znorm.attach(optimizer, znorm.ZNorm())
    one.grad = torch.randn(2, 3)
    optimizer.step()
    optimizer.add_param_group({"params": [late]})
    for p in (one, two, late):
        p.grad = torch.randn(2, 3)
    optimizer.step()
    assert [values["steps"] for values in attachment.receipt().values()] == [2, 1, 1]


def test_a_gradient_of_zeros_has_no_angle() -> None:
    parameter = nn.Parameter(torch.zeros(2, 2))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    attachment = znorm.attach(optimizer, znorm.ZNorm())
    parameter.grad = torch.zeros(2, 2)
    optimizer.step()
    (values,) = attachment.receipt().values()
    assert values["cosine"] == values["norm_after"] == 0


def test_a_copy_starts_a_receipt_of_its_own() -> None:
    import copy

    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    attachment = znorm.attach(optimizer, znorm.ZNorm(), model=model)
    backward(model, 0)
    optimizer.step()
    twin = attachment_of(copy.deepcopy(optimizer))
    assert twin is not None
    assert twin.receipt() == {}
    assert attachment.receipt()


def test_scalars_for_tensorboard() -> None:
    written: list[tuple[str, float, int]] = []

    class Writer:
        def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
            written.append((tag, scalar_value, global_step))

    receipt = {"conv.weight": {"norm_before": 2.0, "cosine": 0.5, "steps": 3}}
    receipts.write(Writer(), receipt, step=7, prefix="g")
    assert written == [("g/norm_before/conv.weight", 2.0, 7), ("g/cosine/conv.weight", 0.5, 7)]


def test_reading_a_receipt_is_the_only_thing_that_waits_for_the_device() -> None:
    """On the meta device anything that needs a value raises; sums alone run there."""
    layout = znorm.Layout([torch.zeros(3, 4), torch.zeros(5)], znorm.ZNorm(select="all"))
    moments = znorm.measure([torch.randn(3, 4), torch.randn(5)], layout)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decision = decide(
            layout,
            znorm.Moments(
                moments.count.to("meta"), moments.mean.to("meta"), moments.m2.to("meta"), layout
            ),
        )
        receipt = Receipt(layout)
        receipt.sums = receipt.sums.to("meta")
        receipt.add(receipt.of_decision(decision))
    with pytest.raises((RuntimeError, NotImplementedError)):
        receipt.as_dict()


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_what_is_kept_and_read_again_is_read_in_any_size_and_memory_order(
    dtype: torch.dtype,
) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(300, 301), (8, 6, 5, 4), (1,), (0, 3), (7,)]
    before = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    before[1] = before[1].contiguous(memory_format=torch.channels_last)
    before[4][2] = torch.nan
    tensors: list[Tensor | None] = [None, *(g.clone() for g in before)]
    layout = znorm.Layout([torch.zeros(2), *map(torch.zeros_like, before)], znorm.ClipValue(9.0))
    kept = Kept([t if t is not None and t.numel() else None for t in tensors], layout)
    before[1].clamp_(-1, 1)  # another tensor than those that are looked at
    for tensor in (tensors[1], tensors[5]):
        assert tensor is not None
        tensor.mul_(2)
    found = {
        index: (size, sums, bool(changed))
        for one in kept.compared(tensors)
        for index, size, sums, changed in zip(
            one.indices, one.sizes, one.sums, one.changed, strict=True
        )
    }
    assert sorted(found) == [1, 2, 3, 5]
    assert [found[index][2] for index in (1, 2, 3)] == [True, False, False]
    for index, factor in ((1, 2.0), (2, 1.0), (3, 1.0)):
        now = tensors[index]
        assert now is not None
        g = now.double() / factor
        size, sums, _ = found[index]
        assert size == g.numel()
        exact = [g.sum(), g.square().sum(), factor * g.square().sum(), now.double().square().sum()]
        large = dtype == torch.float64 or registry.backend_for() is not None
        tolerance = 1e-12 if large or size <= 1 << 16 else 1e-5
        assert sums.tolist() == pytest.approx(list(map(float, exact)), rel=tolerance)
    assert found[5][1].isnan().all()
    assert found[5][2]  # six of its entries are others, and NaN is what it was
