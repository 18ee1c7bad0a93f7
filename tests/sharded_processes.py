"""Four processes with shards of DTensors, for `test_sharding.py`.

``python sharded_processes.py FOLDER CASE...``. Each case does the same with whole tensors, in each
process by itself, and compares.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.distributed.tensor.placement_types import _StridedShard

import znorm
from kit import UPDATES, on
from znorm.engine import exchange

WORLD = 4
# Of every kind: more and fewer rows than processes, rows that do not divide, one row, one column.
SHAPES = [(12, 10), (3, 7), (17, 5, 3), (6, 4, 5), (1, 9), (2, 3, 3, 3), (8, 1)]

TRANSFORMS: dict[str, Any] = {
    "znorm": znorm.ZNorm(),
    "sample": znorm.ZNorm(correction=1),
    "channel": znorm.ZNorm(granularity="channel"),
    "centralize": znorm.Centralize(),
    "unit": znorm.UnitNorm(),
    "norm": znorm.ClipNorm(0.5),
    "global": znorm.chain(znorm.Centralize(), znorm.ClipGlobalNorm(1.0)),
    "adaptive": znorm.AdaptiveClip(0.05),
    "value": znorm.ClipValue(0.5),
    "three readings": znorm.chain(znorm.ZNorm(), znorm.ClipValue(1.0), znorm.ClipGlobalNorm(2.0)),
    "three layers": znorm.ZNorm(select=[("w0", znorm.Layers(3)), ("*", True)]),
    "experts": znorm.ZNorm(select=[("w3", znorm.Layers()), ("*", True)]),
    "channels of layers": znorm.ZNorm(
        granularity="channel",
        select=[("w0", znorm.Layers((5, 7))), ("w3", znorm.Layers()), ("*", True)],
    ),
    "observed": None,
}


def ways() -> dict[str, tuple[DeviceMesh, tuple[Any, ...]]]:
    row, square = init_device_mesh("cpu", (4,)), init_device_mesh("cpu", (2, 2))
    return {
        "rows": (row, (Shard(0),)),
        "columns": (row, (Shard(1),)),
        "replicas": (row, (Replicate(),)),
        "hybrid": (square, (Replicate(), Shard(0))),
        "rows and columns": (square, (Shard(0), Shard(1))),
        "rows twice": (square, (Shard(0), Shard(0))),
        # As FSDP2 leaves what tensor parallelism has sharded first.
        "strided": (square, (_StridedShard(0, split_factor=2), Shard(0))),
    }


def spread(whole: Tensor, way: tuple[DeviceMesh, tuple[Any, ...]]) -> Any:
    """A tensor of which this process holds its shard."""
    mesh, placements = way
    if not isinstance(placements[0], _StridedShard):
        return distribute_tensor(whole.clone(), mesh, placements)
    first, second = mesh.get_coordinate()  # torch distributes none of this kind by itself
    shard = whole
    for at in (second, first):
        pieces = shard.chunk(2, 0)
        shard = pieces[at] if at < len(pieces) else whole[:0]
    return DTensor.from_local(
        shard.clone(), mesh, placements, shape=whole.shape, stride=whole.stride(), run_check=False
    )


def numbers(step: int, shapes: Sequence[tuple[int, ...]] = SHAPES) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [
        (0.1 * place + 0.1) * torch.randn(shape, generator=generator) + 0.3
        for place, shape in enumerate(shapes)
    ]


def parameters_of(tensors: Sequence[Any]) -> list[nn.Parameter]:
    return [nn.Parameter(tensor) for tensor in tensors]


def same(one: Any, whole: Tensor, way: Any, atol: float = 1e-6) -> None:
    """That a sharded tensor holds the numbers of a whole one."""
    torch.testing.assert_close(
        one.detach().to_local(), spread(whole.detach(), way).to_local(), rtol=0, atol=atol
    )


def whole_of(tensor: Any) -> Tensor:
    whole: Tensor = tensor.detach().full_tensor()
    return whole


def sharding_of(tensor: Any) -> tuple[Any, ...]:
    return tuple(tensor.placements)


def same_receipts(one: Any, other: Any) -> None:
    ours, theirs = one.receipt(), other.receipt()
    assert list(ours) == list(theirs)
    for name, fields in theirs.items():
        assert ours[name] == pytest.approx(fields, rel=1e-6, abs=1e-6), name


def every_transform() -> None:
    """Attached to an optimizer, for two steps, with the receipt."""
    for way, (name, transform) in itertools.product(ways().values(), TRANSFORMS.items()):
        runs = []
        for sharded in (False, True):
            given = [spread(n, way) if sharded else n for n in numbers(0)]
            parameters = parameters_of(given)
            optimizer = torch.optim.SGD([(f"w{i}", p) for i, p in enumerate(parameters)], lr=0.1)
            attachment = znorm.attach(optimizer, transform)
            for step in (1, 2):
                for p, g in zip(parameters, numbers(step), strict=True):
                    p.grad = spread(g, way) if sharded else g
                optimizer.step()
            runs.append((parameters, attachment))
        (wholes, theirs), (shards, ours) = runs
        for whole, shard in zip(wholes, shards, strict=True):
            same(shard, whole, way)
        same_receipts(ours, theirs)
        sharded = way[1] != (Replicate(),)
        words = "sharded over" if sharded and name != "value" else ""
        assert all(words in str(row["why"]) for row in ours.describe().rows if row["transformed"])


def functions() -> None:
    """`measure`, `decide`, `apply_` and `z_score_`, in float32 and in bfloat16, complex too."""
    for way in ways().values():
        for dtype in (torch.float32, torch.bfloat16, torch.complex64):
            wholes = [g.to(dtype) for g in numbers(1)]
            shards = [spread(g, way) for g in wholes]
            for transform in (znorm.ZNorm(), znorm.Centralize()):
                results = []
                for tensors in (wholes, shards):
                    layout = znorm.Layout(tensors, transform)
                    moments = znorm.measure(tensors, layout)
                    own = [t.clone() for t in tensors]
                    znorm.apply_(own, znorm.decide(transform, moments))
                    results.append((moments, own))
                (theirs, right), (ours, made) = results
                assert torch.equal(ours.count, theirs.count)
                torch.testing.assert_close(ours.mean, theirs.mean, rtol=0, atol=1e-14)
                torch.testing.assert_close(ours.m2, theirs.m2, rtol=1e-12, atol=1e-14)
                for shard, whole in zip(made, right, strict=True):
                    # Half a unit in the last place of bfloat16, where a rounding is near a tie.
                    same(shard, whole, way, 1e-6 if dtype != torch.bfloat16 else 1 / 128)
            if dtype.is_complex:
                continue
            znorm.z_score_(wholes)
            znorm.z_score_(shards)
            for shard, whole in zip(shards, wholes, strict=True):
                same(shard, whole, way, 1e-6 if dtype != torch.bfloat16 else 1 / 128)


def optimizers() -> None:
    """Those of `znorm.optim`, the transform within the update; states sharded as weights."""
    transforms = [TRANSFORMS[name] for name in ("znorm", "channel", "global", "adaptive")]
    way = ways()["rows"]
    for (make, options), transform in itertools.product(UPDATES.values(), transforms):
        runs = []
        for sharded in (False, True):
            parameters = parameters_of([spread(n, way) if sharded else n for n in numbers(0)])
            optimizer = make(parameters, **on(options, "cpu"), transform=transform)
            for step in range(3):
                for place, (p, g) in enumerate(zip(parameters, numbers(step), strict=True)):
                    # One has no gradient at first, on any process.
                    absent = place == 1 and step == 0
                    p.grad = None if absent else spread(g, way) if sharded else g
                optimizer.step()
            assert "the transform within the update" in repr(optimizer)
            runs.append((parameters, optimizer))
        (wholes, theirs), (shards, ours) = runs
        for whole, shard in zip(wholes, shards, strict=True):
            same(shard, whole, way)
            for key, value in theirs.state[whole].items():
                if isinstance(value, Tensor) and value.dim():
                    same(ours.state[shard][key], value, way)
                else:
                    assert ours.state[shard][key] == value
        same_receipts(znorm.attachment_of(ours), znorm.attachment_of(theirs))


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3))


IMAGES = torch.randn(16, 6, generator=torch.Generator().manual_seed(1))
MAKERS: dict[str, Callable[..., Any]] = {
    "attach": lambda p, t, m: attached(torch.optim.Adam(p, lr=0.01), t, m),
    "attach, fused": lambda p, t, m: attached(torch.optim.Adam(p, lr=0.01, fused=True), t, m),
    "adam": lambda p, t, m: znorm.optim.Adam(p, lr=0.01, transform=t, model=m),
    "adamw, rounded": lambda p, t, m: znorm.optim.AdamW(
        p, lr=0.01, transform=t, model=m, stochastic_rounding=True
    ),
    "sgd": lambda p, t, m: znorm.optim.SGD(p, lr=0.1, momentum=0.9, transform=t, model=m),
}


def attached(optimizer: Any, transform: Any, model: Any) -> Any:
    znorm.attach(optimizer, transform, model=model)
    return optimizer


def train(net: nn.Module, optimizer: Any, images: Tensor, *, scaled: bool, steps: int = 4) -> None:
    scaler = torch.amp.GradScaler("cpu", enabled=scaled, init_scale=1024.0)
    for _ in range(steps):
        optimizer.zero_grad()
        scaler.scale(net(images).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()


def same_nets(sharded: nn.Module, alone: nn.Module) -> None:
    for (name, one), other in zip(sharded.named_parameters(), alone.parameters(), strict=True):
        whole = one.full_tensor() if isinstance(one, DTensor) else one
        torch.testing.assert_close(
            whole, other, rtol=0, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )


def fsdp2() -> None:
    """Each process has a part of the batch, and the net ends as that of one process with all."""
    transform = znorm.chain(znorm.ZNorm(), znorm.ClipGlobalNorm(1.0))
    meshes = [
        init_device_mesh("cpu", (4,)),
        init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicas", "shards")),
    ]
    for mesh, make, scaled in itertools.product(meshes, MAKERS.values(), (False, True)):
        nets = alone, sharded = small_net(), small_net()
        for module in (sharded[0], sharded[3], sharded):
            fully_shard(module, mesh=mesh)
        parts = IMAGES, IMAGES.chunk(WORLD)[dist.get_rank()]
        optimizers = [make(net.parameters(), transform, net) for net in nets]
        for net, optimizer, images in zip(nets, optimizers, parts, strict=True):
            train(net, optimizer, images, scaled=scaled)
        same_nets(sharded, alone)
        same_receipts(*(znorm.attachment_of(optimizer) for optimizer in reversed(optimizers)))


def sharded_after_attach() -> None:
    """As accelerate does: the optimizer is made first, and given the shards later."""
    part = IMAGES.chunk(WORLD)[dist.get_rank()]
    for make, trained in itertools.product(MAKERS.values(), (False, True)):
        nets = alone, sharded = small_net(), small_net()
        optimizers = [make(net.parameters(), znorm.ZNorm(), net) for net in nets]
        if trained:  # states are made of whole parameters, and left behind
            for net, optimizer in zip(nets, optimizers, strict=True):
                train(net, optimizer, IMAGES, scaled=False, steps=1)
                optimizer.state.clear()
        fully_shard(sharded, mesh=init_device_mesh("cpu", (4,)))
        optimizers[1].param_groups[0]["params"] = list(sharded.parameters())
        for net, optimizer, images in zip(nets, optimizers, (IMAGES, part), strict=True):
            train(net, optimizer, images, scaled=False)
        same_nets(sharded, alone)
        same_receipts(*(znorm.attachment_of(optimizer) for optimizer in reversed(optimizers)))


def tensor_parallel() -> None:
    """Two ways at once: tensor parallelism, and FSDP2 over what it leaves; output channels, too."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "model"))
    for transform in (
        znorm.chain(znorm.ZNorm(), znorm.ClipGlobalNorm(1.0)),
        znorm.chain(znorm.Centralize(), znorm.ClipNorm(0.1)),
    ):
        nets = alone, sharded = [
            nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)) for _ in range(2)
        ]
        sharded.load_state_dict(alone.state_dict())
        for net in nets:
            for p in net.parameters():
                dist.broadcast(p.detach(), 0)
        parallelize_module(sharded, mesh["model"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
        fully_shard(sharded, mesh=mesh["data"])
        assert any(isinstance(sharding_of(p)[0], _StridedShard) for p in sharded.parameters())
        parts = IMAGES, IMAGES.chunk(2)[mesh["data"].get_local_rank()]
        for net, images in zip(nets, parts, strict=True):
            optimizer = attached(torch.optim.SGD(net.parameters(), lr=0.1), transform, net)
            train(net, optimizer, images, scaled=False)
        same_nets(sharded, alone)


def sums_left_open() -> None:
    """Sequence parallelism leaves gradients as sums over processes, which are closed first."""
    mesh = init_device_mesh("cpu", (4,))
    alone, sharded = nn.LayerNorm(6), nn.LayerNorm(6)
    parallelize_module(sharded, mesh, SequenceParallel(sequence_dim=0))
    for net in (alone, sharded):
        optimizer = attached(
            torch.optim.SGD(net.parameters(), lr=0.1), znorm.UnitNorm(select="all"), net
        )
        loss = net(IMAGES).square().mean(-1).sum()
        (loss.full_tensor() if isinstance(loss, DTensor) else loss).backward()
        optimizer.step()
    same_nets(sharded, alone)
    way = (mesh, (Replicate(),))
    parameter = nn.Parameter(spread(torch.zeros(4, 5), way))
    optimizer = attached(torch.optim.SGD([parameter], lr=1.0), znorm.UnitNorm(), None)
    part = torch.full((4, 5), float(dist.get_rank()))
    parameter.grad = DTensor.from_local(part, mesh, [Partial()], run_check=False)
    optimizer.step()
    same(parameter, torch.full((4, 5), -1 / 20**0.5), way)
    refused(
        lambda: znorm.z_score_([DTensor.from_local(part, mesh, [Partial()], run_check=False)]),
        "a sum that is not complete",
    )


def overflow() -> None:
    """Of one process: none of them steps, and no step is counted, of empty shards neither."""
    way = ways()["rows"]
    for make in (
        *MAKERS.values(),
        lambda p, t, m: znorm.optim.Adam(p, transform=znorm.ClipValue(1.0)),
    ):
        wholes = numbers(0, [(6, 3), (1, 3)])
        parameters = parameters_of([spread(w, way) for w in wholes])
        optimizer = make(parameters, znorm.ZNorm(), None)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        scaler.scale(torch.zeros(1))
        for step in range(3):
            for p, g in zip(parameters, numbers(step, [(6, 3), (1, 3)]), strict=True):
                if step == 1 and len(g) == 6:
                    g[5, 0] = float("inf")  # the third process has it
                p.grad = spread(g, way)
            before = [whole_of(p) for p in parameters]
            scaler.step(optimizer)
            scaler.update()
            for one, p in zip(before, parameters, strict=True):
                assert torch.equal(one, whole_of(p)) == (step == 1)
        states = [optimizer.state[p] for p in parameters]
        assert [float(state.get("step", 2)) for state in states] == [2, 2]
        receipt = znorm.attachment_of(optimizer).receipt()
        assert [fields["steps"] for fields in receipt.values()] == [2, 2]


@contextlib.contextmanager
def counted() -> Iterator[list[int]]:
    """The sizes of the collectives of this package."""
    sizes: list[int] = []
    real = exchange._all_gather

    def gather(out: Tensor, own: Tensor, **options: Any) -> None:
        sizes.append(own.numel())
        real(out, own, **options)

    exchange._all_gather = gather
    try:
        yield sizes
    finally:
        exchange._all_gather = real


def collectives() -> None:
    """One for each mesh and step, of three numbers a unit; none where each has all."""
    table: dict[str, tuple[Any, list[int]]] = {
        "rows": (znorm.ZNorm(), [3 * 7]),
        "hybrid": (znorm.chain(znorm.ZNorm(), znorm.ClipGlobalNorm(1.0)), [3 * 7]),
        "rows and columns": (znorm.ClipNorm(1.0), [3 * 7, 2 * 3 * 7]),  # along each of its dims
        "replicas": (znorm.ZNorm(), []),
    }
    for name, (transform, expected) in table.items():
        way = ways()[name]
        parameters = parameters_of([spread(n, way) for n in numbers(0)])
        optimizer = attached(torch.optim.SGD(parameters, lr=0.1), transform, None)
        for p, g in zip(parameters, numbers(1), strict=True):
            p.grad = spread(g, way)
        with counted() as sizes:
            optimizer.step()
        assert sizes == expected, (name, sizes)
    # Of output channels a process sends its own: a quarter of the 12 rows, and no more.
    way = ways()["rows"]
    (whole,) = numbers(0, [(12, 5)])
    layout = znorm.Layout([spread(whole, way)], znorm.Centralize())
    with counted() as sizes:
        moments = znorm.measure([spread(whole, way)], layout)
    assert sizes == [3 * 3]
    torch.testing.assert_close(moments.mean, whole.double().mean(1))


def constant() -> None:
    """A constant gradient gives exact zeros, however it is cut; NaN anywhere spreads to all."""
    for way in ways().values():
        for shape in SHAPES:
            gradient = spread(torch.full(shape, 0.1), way)
            znorm.z_score_([gradient])
            assert not gradient.to_local().any()
        bad = torch.ones(8, 4)
        bad[7, 3] = float("nan")
        gradient = spread(bad, way)
        znorm.z_score_([gradient])
        assert gradient.to_local().isnan().all()


def states() -> None:
    """Checkpoints of torch's own functions go on to the same bits."""

    def make() -> tuple[nn.Module, Any]:
        net = small_net()
        fully_shard(net, mesh=init_device_mesh("cpu", (4,)))
        return net, znorm.optim.Adam(net.parameters(), lr=0.01, transform=znorm.ZNorm(), model=net)

    part = IMAGES.chunk(WORLD)[dist.get_rank()]
    net, optimizer = make()
    train(net, optimizer, part, scaled=False, steps=2)
    kept = copy.deepcopy(net.state_dict()), get_optimizer_state_dict(net, optimizer)
    kept = copy.deepcopy(kept)
    train(net, optimizer, part, scaled=False, steps=2)
    other, resumed = make()
    other.load_state_dict(kept[0])
    set_optimizer_state_dict(other, resumed, kept[1])
    train(other, resumed, part, scaled=False, steps=2)
    for one, two in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(whole_of(one), whole_of(two))


def sharded_anew() -> None:
    """A parameter that is sharded in another way, in its place: no address is of before."""
    mesh = init_device_mesh("cpu", (4,))
    kinds = [(Shard(0),), (Shard(1),), (Replicate(),)]
    wholes = [numbers(step, [(9, 4), (8, 4)]) for step in range(3)]
    for (before, after), make in itertools.product(
        itertools.permutations(kinds, 2), (MAKERS["attach"], MAKERS["adam"], MAKERS["sgd"])
    ):
        runs = []
        for sharded in (False, True):
            holder = nn.ParameterList(
                parameters_of(
                    [spread(w, (mesh, before)) if sharded else w.clone() for w in wholes[0]]
                )
            )
            optimizer = make(holder.parameters(), znorm.Centralize(), None)
            for step in (1, 2):
                if sharded and step == 2:
                    holder._apply(lambda t, to=after: t.redistribute(placements=to))
                    optimizer.state.clear()
                elif step == 2:
                    optimizer.state.clear()
                way = (mesh, before if step == 1 else after)
                for p, g in zip(holder, wholes[step], strict=True):
                    p.grad = spread(g, way) if sharded else g
                optimizer.step()
            runs.append(list(holder))
        for whole, shard in zip(*runs, strict=True):
            torch.testing.assert_close(whole_of(shard), whole.detach(), rtol=0, atol=1e-6)


def states_of_one_process() -> None:
    """Before the first step torch takes one of its own to make them, which waits for nobody."""
    for make in MAKERS.values():
        net = small_net()
        fully_shard(net, mesh=init_device_mesh("cpu", (4,)))
        optimizer = make(net.parameters(), znorm.ZNorm(), net)
        if dist.get_rank() == 1:
            with counted() as sizes:
                get_optimizer_state_dict(net, optimizer)
            assert sizes == []
        dist.barrier()


def expanded() -> None:
    """A gradient whose entries lie in one place is copied, as a plain one is."""
    way = ways()["rows"]
    parameter = nn.Parameter(spread(torch.zeros(8, 4), way))
    optimizer = attached(torch.optim.SGD([parameter], lr=1.0), znorm.UnitNorm(), None)
    shard = torch.ones(1, 1).expand(2, 4)
    parameter.grad = DTensor.from_local(shard, way[0], way[1], run_check=False)
    optimizer.step()
    same(parameter, torch.full((8, 4), -1 / 32**0.5), way)


def refused(call: Any, words: str) -> None:
    with pytest.raises((TypeError, ValueError, RuntimeError), match=words):
        call()


def refusals() -> None:
    """Each names the parameter, on every process."""
    way, square = ways()["rows"], ways()["rows twice"]
    whole = torch.randn(8, 6)
    shard = spread(whole, way)
    plain = znorm.Layout([("w", whole)], znorm.ZNorm())
    layout = znorm.Layout([("w", shard)], znorm.ZNorm())
    refused(lambda: znorm.measure([shard], plain), "w: its gradient is sharded")
    refused(lambda: znorm.measure([whole], layout), "w: its gradient is a plain tensor")
    other = distribute_tensor(whole, way[0], [Shard(1)])
    refused(lambda: znorm.measure([other], layout), "w: its gradient lies on the processes as")
    present = None if dist.get_rank() == 2 else shard
    refused(lambda: znorm.measure([present], layout), r"w: some processes .*36 of 48")
    net = small_net()
    fully_shard(net, mesh=way[0])
    refused(
        lambda: znorm.in_backward(net, lambda p: torch.optim.SGD(p, lr=0.1), znorm.ZNorm()),
        r"0.weight: is sharded .*use znorm.attach",
    )
    descending = DeviceMesh("cpu", [3, 1, 0, 2])
    net = nn.Linear(8, 16)
    fully_shard(net, mesh=descending)
    for transform in (znorm.ZNorm(), znorm.Centralize()):
        refused(
            lambda t=transform, n=net: znorm.attach(torch.optim.SGD(n.parameters()), t, model=n),
            "not in ascending order",
        )
    net = small_net()
    fully_shard(net, mesh=way[0])
    optimizer = torch.optim.SGD(net.parameters())
    with torch.no_grad():
        net(IMAGES)
    refused(lambda: znorm.attach(optimizer, znorm.ZNorm(), model=net), r"call model.reshard\(\) f")
    net.reshard()
    znorm.attach(optimizer, znorm.ZNorm(), model=net)
    half = nn.Parameter(spread(whole.bfloat16(), ways()["hybrid"]))
    refused(
        lambda: znorm.optim.AdamW([half], transform=znorm.ZNorm(), stochastic_rounding=True),
        "replicas of a weight",
    )
    odd = DTensor.from_local(
        torch.zeros(2 if dist.get_rank() else 5, 6),
        way[0],
        [Shard(0)],
        shape=(11, 6),
        stride=(6, 1),
        run_check=False,
    )
    if dist.get_rank() < 3:
        refused(
            lambda: znorm.Layout([("w", odd)], znorm.ZNorm()), "w: .* its shard has another shape"
        )
    parameter = nn.Parameter(spread(whole, square))
    optimizer = attached(torch.optim.SGD([parameter], differentiable=True), znorm.ZNorm(), None)
    parameter.grad = spread(whole, square)
    refused(optimizer.step, "differentiable=True")


def process(rank: int, folder: str, cases: list[str]) -> None:
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=WORLD)
    torch.set_num_threads(1)
    said = {}
    for case in cases:
        try:
            globals()[case]()
            said[case] = "ok"
        except Exception:
            said[case] = traceback.format_exc()
    Path(folder, f"rank-{rank}.json").write_text(json.dumps(said))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.multiprocessing.spawn(process, args=(sys.argv[1], sys.argv[2:]), nprocs=WORLD)
