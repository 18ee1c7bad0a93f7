"""What only a real GPU can show: graphs, streams, mixed precision, and no waiting."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import oracle
import znorm
from waiting import nothing_waits

pytestmark = pytest.mark.gpu

SHAPES = [(24, 40), (8, 3, 3, 3), (7,), (600, 451)]


def net_of(shapes: Any, device: torch.device, dtype: torch.dtype = torch.float32) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(s, generator=generator).to(device, dtype)) for s in shapes]


def raw(parameters: list[Any], step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step + 1)
    return [
        (0.01 * torch.randn(p.shape, generator=generator) + 0.003).to(p.device, p.dtype)
        for p in parameters
    ]


TRANSFORMS: dict[str, Any] = {
    "znorm": znorm.ZNorm(),
    "channel": znorm.ZNorm(granularity="channel"),
    "chain": znorm.chain(znorm.Centralize(), znorm.ClipGlobalNorm(1.0)),
    "adaptive": znorm.AdaptiveClip(0.05),
    "value": znorm.chain(znorm.ZNorm(), znorm.ClipValue(1.0)),
    "value alone": znorm.ClipValue(0.01),
}
OURS: dict[str, Any] = {
    "adam": lambda p, t: znorm.optim.Adam(p, transform=t),
    "adam, capturable": lambda p, t: znorm.optim.Adam(p, transform=t, capturable=True),
    "sgd": lambda p, t: znorm.optim.SGD(p, lr=0.1, momentum=0.9, transform=t),
}


def attached(parameters: Any, transform: Any) -> Any:
    optimizer = torch.optim.Adam(parameters, fused=True, capturable=True)
    znorm.attach(optimizer, transform)
    return optimizer


MAKERS = {**OURS, "attached": attached}


@pytest.mark.parametrize(
    ("make", "transform"),
    [
        (make, transform)
        for make, transform in itertools.product(MAKERS, TRANSFORMS)
        # torch's own Adam, which takes these, counts its steps on the CPU unless it is capturable.
        if not (transform.startswith("value") and make == "adam")
    ],
)
def test_no_step_waits_for_the_device(gpu: torch.device, make: str, transform: str) -> None:
    parameters = net_of(SHAPES, gpu)
    optimizer = MAKERS[make](parameters, TRANSFORMS[transform])
    given = [raw(parameters, number) for number in range(4)]
    for number in range(4):
        for p, g in zip(parameters, given[number], strict=True):
            p.grad = g
        if number < 2:
            optimizer.step()
            continue
        with nothing_waits():
            optimizer.step()


@pytest.mark.parametrize("make", ["adam, capturable", "sgd", "attached"])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_captured_step_is_replayed(gpu: torch.device, make: str, transform: str) -> None:
    found = []
    for captures in (True, False):
        parameters = net_of(SHAPES, gpu)
        optimizer = MAKERS[make](parameters, TRANSFORMS[transform])
        static = [torch.empty_like(p) for p in parameters]
        graph = None
        for number in range(8):
            for s, g in zip(static, raw(parameters, number), strict=True):
                s.copy_(g)
            if number < 3 or not captures or number == 6:
                # Between two replays a step on its own, with gradients elsewhere.
                for p, s in zip(parameters, static, strict=True):
                    p.grad = s.clone()
                optimizer.step()
                continue
            if graph is None:
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    # In memory of the graph's own, as a captured backward has it.
                    for p, s in zip(parameters, static, strict=True):
                        p.grad = s.clone()
                    optimizer.step()
            graph.replay()
        found.append([p.detach().clone() for p in parameters])
    for one, other in zip(*found, strict=True):
        assert (one - other).abs().max() <= 1e-6 * other.abs().max()


def test_a_graph_outlives_what_it_was_captured_from(gpu: torch.device) -> None:
    parameters = net_of(SHAPES, gpu)
    optimizer = znorm.optim.Adam(parameters, transform=znorm.ZNorm(), capturable=True)
    for p, g in zip(parameters, raw(parameters, 0), strict=True):
        p.grad = g
    for _ in range(3):
        optimizer.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    before = [p.detach().clone() for p in parameters]
    optimizer.__dict__["_fused_step"] = None  # as where a gradient goes missing
    rubbish = [torch.full((1 << 16,), 77, dtype=torch.int64, device=gpu) for _ in range(64)]
    graph.replay()
    torch.cuda.synchronize()
    assert all((held == 77).all() for held in rubbish)
    for p, b in zip(parameters, before, strict=True):
        assert 0 < (p - b).abs().max() <= 2e-3  # one step of Adam, of 1e-3


def test_two_streams_step_at_once(gpu: torch.device) -> None:
    expected, found = [], []
    for at_once in (False, True):
        several = [net_of(SHAPES, gpu) for _ in range(2)]
        optimizers = [znorm.optim.Adam(p, transform=znorm.ZNorm()) for p in several]
        streams = [torch.cuda.Stream() for _ in several]
        torch.cuda.synchronize()
        for number in range(10):
            for parameters, optimizer, stream in zip(several, optimizers, streams, strict=True):
                stream = stream if at_once else torch.cuda.current_stream()
                with torch.cuda.stream(stream):
                    for p, g in zip(parameters, raw(parameters, number), strict=True):
                        p.grad = g
                    optimizer.step()
        torch.cuda.synchronize()
        kept = found if at_once else expected
        kept += [p.detach() for parameters in several for p in parameters]
    assert all(map(torch.equal, found, expected))


def test_one_layout_on_two_streams(gpu: torch.device) -> None:
    gradients = raw(net_of(SHAPES, gpu), 0)
    layout = znorm.Layout(gradients, znorm.ZNorm())
    expected = znorm.measure(gradients, layout)
    torch.cuda.synchronize()
    found = []
    for stream in [torch.cuda.Stream() for _ in range(4)]:
        with torch.cuda.stream(stream):
            found.append(znorm.measure(gradients, layout))
    torch.cuda.synchronize()
    for moments in found:
        assert torch.equal(moments.mean, expected.mean)
        assert torch.equal(moments.m2, expected.m2)


UPDATES: dict[str, dict[str, Any]] = {
    "Adam": {"lr": 1e-2},
    "AdamW": {"lr": 1e-2, "weight_decay": 0.1},
    "SGD": {"lr": 0.1, "momentum": 0.9},
}


@pytest.mark.parametrize("fused", [None, True])
@pytest.mark.parametrize(
    ("way", "dtype"),
    [
        *itertools.product(("neither", "closure"), (torch.float32, torch.bfloat16)),
        # torch's GradScaler has no bfloat16 on CUDA, which needs none.
        ("scaler", torch.float32),
    ],
    ids=str,
)
@pytest.mark.parametrize("update", UPDATES)
def test_the_mixed_precision_table(
    gpu: torch.device, update: str, way: str, dtype: torch.dtype, fused: bool | None
) -> None:
    options = UPDATES[update]
    ours = net_of(SHAPES, gpu, dtype)
    optimizer = getattr(znorm.optim, update)(ours, **options, transform=znorm.ZNorm(), fused=fused)
    bare = [nn.Parameter(p.detach().clone()) for p in ours]
    alone = dtype == torch.bfloat16
    reference = (
        getattr(znorm.optim, update)(bare, **options, transform=znorm.ZNorm())
        if alone
        else getattr(torch.optim, update)(bare, **options)
    )
    scaler = torch.amp.GradScaler("cuda", init_scale=1024.0, enabled=way == "scaler")
    scale = float(scaler.scale(torch.ones((), device=gpu)))
    for number in range(4):
        overflows = way == "scaler" and number in (1, 2)
        given = raw(ours, number)
        if not overflows:
            for p, g in zip(bare, given, strict=True):
                untouched = alone or p.dim() < 2
                p.grad = g if untouched else oracle.whole(oracle.z_score, g).to(gpu, dtype)
            reference.step()
        if way == "closure":

            def closure(held: Any = tuple(given)) -> Tensor:
                for p, g in zip(ours, held, strict=True):
                    p.grad = g.clone()
                return torch.tensor(1.0)

            optimizer.step(closure)
            continue
        for p, g in zip(ours, given, strict=True):
            p.grad = g * scale
        if overflows:
            ours[0].grad[0, 0] = torch.inf
        scaler.step(optimizer)
        scaler.update(scale)
    for one, other in zip(ours, bare, strict=True):
        if dtype == torch.float32:
            assert (one - other).abs().max() <= 1e-6 * other.abs().max()
        else:
            assert torch.equal(one, other)


@pytest.mark.parametrize("order", ["cpu first", "gpu first"])
@pytest.mark.parametrize("transform", ["znorm", "chain"])
def test_groups_on_two_devices(gpu: torch.device, order: str, transform: str) -> None:
    """One of a model's tensors on the CPU: each by the kernels of its own device."""
    found = []
    for dtype in (torch.float32, torch.float64):
        first, second = net_of([(24, 40), (30, 7)], torch.device("cpu"), dtype)
        parameters = [first, nn.Parameter(second.detach().to(gpu))]
        if order == "gpu first":
            parameters.reverse()
        optimizer = znorm.optim.Adam(parameters, transform=TRANSFORMS[transform])
        for number in range(3):
            for p, g in zip(parameters, raw(parameters, number), strict=True):
                p.grad = g
            optimizer.step()
        found.append([p.detach().cpu() for p in parameters])
    for one, other in zip(*found, strict=True):
        assert (one - other).abs().max() <= 1e-6


def test_a_parameter_that_moves_is_looked_at_anew(gpu: torch.device) -> None:
    found = []
    for moves in (True, False):
        parameters = net_of(SHAPES, gpu)
        optimizer = znorm.optim.Adam(parameters, transform=znorm.ZNorm())
        for number in range(4):
            if moves and number == 2:
                for p in parameters:
                    p.data = p.data.clone()
                    for key, value in optimizer.state[p].items():
                        optimizer.state[p][key] = value.clone()
            for p, g in zip(parameters, raw(parameters, number), strict=True):
                p.grad = g
            optimizer.step()
        found.append([p.detach() for p in parameters])
    assert all(map(torch.equal, *found))
