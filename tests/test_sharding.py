"""Sharded parameters (DTensor): as if each process had all of them.

What of a shard belongs to which unit is compared with a table that is cut as the tensor is; the
rest is trained in four real processes, beside one that has everything.
"""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard

import znorm
from znorm.layers import LayerSlice
from znorm.sharding import Sharding


class Mesh:
    """A mesh as far as shapes are concerned."""

    def __init__(self, shape: tuple[int, ...], coordinate: tuple[int, ...]) -> None:
        self.shape, self._coordinate = shape, coordinate

    def size(self, dim: int) -> int:
        return self.shape[dim]

    @property
    def mesh(self) -> Tensor:
        return torch.arange(math.prod(self.shape)).view(self.shape)

    def get_coordinate(self) -> list[int]:
        return list(self._coordinate)


PLACEMENTS: dict[str, tuple[tuple[int, ...], tuple[Any, ...]]] = {
    "rows": ((3,), (Shard(0),)),
    "more than rows": ((13,), (Shard(0),)),
    "columns": ((4,), (Shard(1),)),
    "hybrid": ((2, 3), (Replicate(), Shard(0))),
    "both": ((3, 2), (Shard(1), Shard(0))),
    "rows twice": ((2, 3), (Shard(0), Shard(0))),
    "strided": ((2, 3), (_StridedShard(0, split_factor=3), Shard(0))),
}
TRANSPOSED = nn.ConvTranspose1d(12, 8, 3, groups=4, bias=False)
WEIGHTS: dict[str, tuple[Any, Any]] = {
    "tensor": (torch.zeros(12, 5), znorm.ZNorm()),
    "channels": (torch.zeros(12, 5, 2), znorm.Centralize()),
    "transposed": (TRANSPOSED, znorm.Centralize()),
    "transposed, one group": (nn.ConvTranspose1d(7, 6, 2, bias=False), znorm.Centralize()),
    "complex": (torch.zeros(12, 5, dtype=torch.complex64), znorm.Centralize()),
    "three layers": (torch.zeros(12, 5), znorm.ZNorm(select=[("*", znorm.Layers(3))])),
    "uneven layers": (
        torch.zeros(12, 5),
        znorm.ZNorm(granularity="channel", select=[("*", znorm.Layers((5, 7)))]),
    ),
    "along columns": (
        torch.zeros(12, 8),
        znorm.ZNorm(granularity="channel", select=[("*", znorm.Layers(2, dim=1))]),
    ),
    "experts": (torch.zeros(6, 5, 4), znorm.ZNorm(select=[("*", znorm.Layers())])),
    "channels of experts": (
        torch.zeros(6, 5, 4),
        znorm.ZNorm(granularity="channel", select=[("*", znorm.Layers())]),
    ),
}


def table(tensor: Tensor, slices: tuple[LayerSlice, ...], numbers: list[int]) -> Tensor:
    """For each element of a tensor the number of the unit that the slices say it belongs to."""
    found = torch.full(tensor.shape, -1.0, dtype=torch.float64)
    if tensor.is_complex():
        found = torch.stack([found, found], -1)
    for piece in slices:
        own = torch.zeros(1 + max(p.first_unit + p.units for p in slices), dtype=torch.float64)
        for number in range(piece.first_unit, piece.first_unit + piece.units):
            own[number] = numbers[number]
        view = piece.view_of(found)
        assert (view == -1).all()  # of no other unit
        view.copy_(piece.broadcast(own).expand_as(view))
    return found


@pytest.mark.parametrize("way", PLACEMENTS)
@pytest.mark.parametrize("kind", WEIGHTS)
def test_units_of_a_shard_are_those_of_the_whole(kind: str, way: str) -> None:
    given, transform = WEIGHTS[kind]
    model = given if isinstance(given, nn.Module) else None
    tensor = given if isinstance(given, Tensor) else given.weight
    layout = znorm.Layout([("w", tensor)], transform, model=model)
    (slices,) = layout.slices
    whole = table(tensor, slices, list(range(layout.units)))
    mesh_shape, placements = PLACEMENTS[way]
    held = 0
    for coordinate in itertools.product(*map(range, mesh_shape)):
        sharding = Sharding(Mesh(mesh_shape, coordinate), placements, tuple(tensor.shape))
        assert sharding.why_unsupported(torch.zeros(sharding.shape_at(coordinate)), slices) is None
        first = 3  # as if another tensor came before
        own, units = sharding.slices_at(coordinate, slices, first)
        shape = sharding.shape_at(coordinate)
        # As torch cuts: along each dim of the mesh in turn, a strided one after the plain ones.
        expected = whole
        order = sorted(enumerate(placements), key=lambda pair: isinstance(pair[1], _StridedShard))
        for dim, placement in order:
            if not placement.is_replicate():
                pieces = expected.chunk(mesh_shape[dim], placement.dim)
                at = coordinate[dim]
                cut = expected.narrow(placement.dim, 0, 0)
                expected = pieces[at] if at < len(pieces) else cut
        assert shape == tuple(expected.shape[: tensor.dim()])
        local = torch.zeros(shape, dtype=tensor.dtype)
        assert torch.equal(table(local, own, [0] * first + units), expected)
        assert sum(piece.units for piece in own) == len(units)
        held += local.numel()
        assert coordinate in list(sharding.peers())
    assert held == tensor.numel() * (2 if way == "hybrid" else 1)


def test_placements_that_leave_no_stretch_are_refused_where_channels_matter() -> None:
    # In twos of the whole: the first process has rows 0, 1, 4, 5.
    sharding = Sharding(Mesh((2,), (0,)), (_StridedShard(0, split_factor=2),), (8, 3))
    shard = torch.zeros(4, 3)
    tensor = torch.zeros(8, 3)
    by_tensor = znorm.Layout([tensor], znorm.ZNorm()).slices[0]
    by_channel = znorm.Layout([tensor], znorm.Centralize()).slices[0]
    assert sharding.why_unsupported(shard, by_tensor) is None
    assert "channels cannot be told apart" in str(sharding.why_unsupported(shard, by_channel))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A mesh of this one process: it takes the way of shards, and holds all of each tensor."""
    store = f"file://{tmp_path_factory.mktemp('alone')}/store"
    dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


ALONE: dict[str, Any] = {
    "attach": lambda p, t: attached(torch.optim.SGD(p, lr=0.1), t),
    "adam": lambda p, t: znorm.optim.Adam(p, lr=0.1, transform=t),
    "sgd": lambda p, t: znorm.optim.SGD(p, lr=0.1, momentum=0.9, transform=t),
}


def attached(optimizer: Any, transform: Any) -> Any:
    znorm.attach(optimizer, transform)
    return optimizer


@pytest.mark.parametrize("make", ALONE)
@pytest.mark.parametrize(
    "transform",
    [
        znorm.ZNorm(),
        znorm.Centralize(),
        znorm.AdaptiveClip(0.05),
        znorm.ClipValue(0.1),
        znorm.chain(znorm.ZNorm(), znorm.ClipValue(1.0), znorm.ClipGlobalNorm(2.0)),
        None,
    ],
    ids=repr,
)
def test_a_mesh_of_one_process(alone: Any, make: str, transform: Any) -> None:
    if transform is None and make != "attach":
        pytest.skip("there is nothing to observe with")
    runs = []
    for sharded in (False, True):

        def given(seed: int, sharded: bool = sharded) -> list[Any]:
            generator = torch.Generator().manual_seed(seed)
            wholes = [
                torch.randn(shape, generator=generator) for shape in ((6, 4), (3, 2, 2), (5,))
            ]
            return [distribute_tensor(w, alone, [Shard(0)]) if sharded else w for w in wholes]

        parameters = [nn.Parameter(one) for one in given(0)]
        optimizer = ALONE[make](parameters, transform)
        for step in range(1, 5):
            for place, (p, g) in enumerate(zip(parameters, given(step), strict=True)):
                p.grad = None if (place, step) == (1, 3) else g
            optimizer.step()
        runs.append((parameters, znorm.attachment_of(optimizer)))
    (wholes, theirs), (shards, ours) = runs
    for whole, shard in zip(wholes, shards, strict=True):
        local: Tensor = shard.detach().to_local()  # type: ignore[attr-defined]
        torch.testing.assert_close(local, whole.detach(), rtol=0, atol=1e-6)
    for name, fields in theirs.receipt().items():
        assert ours.receipt()[name] == pytest.approx(fields, rel=1e-6, abs=1e-6)


def test_what_does_not_fit_each_other_is_named(alone: Any) -> None:
    whole = torch.randn(4, 3)
    shard = distribute_tensor(whole, alone, [Shard(0)])
    plain, layout = (znorm.Layout([("w", one)], znorm.ZNorm()) for one in (whole, shard))
    with pytest.raises(TypeError, match="w: its gradient is sharded"):
        znorm.measure([shard], plain)
    with pytest.raises(TypeError, match="w: its gradient is a plain tensor"):
        znorm.measure([whole], layout)
    with pytest.raises(ValueError, match="w: its gradient lies on the processes as"):
        znorm.measure([distribute_tensor(whole, alone, [Shard(1)])], layout)
    parameter = nn.Parameter(shard)
    parameter.grad = DTensor.from_local(whole, alone, [Partial()])  # closed, and cut as weights are
    attached(torch.optim.SGD([parameter], lr=0.1), znorm.ZNorm()).step()
    with pytest.raises(TypeError, match="a sum that is not complete"):
        znorm.z_score_([DTensor.from_local(whole, alone, [Partial()])])
    model = nn.Linear(3, 2)
    model.weight = nn.Parameter(distribute_tensor(torch.randn(2, 3), alone, [Shard(0)]))
    with pytest.raises(TypeError, match=r"weight: is sharded .*use znorm.attach"):
        znorm.in_backward(model, lambda p: torch.optim.SGD(p, lr=0.1), znorm.ZNorm())
    optimizer = attached(torch.optim.SGD([parameter], differentiable=True), znorm.ZNorm())
    parameter.grad = shard
    with pytest.raises(RuntimeError, match="differentiable=True"):
        optimizer.step()


CASES = [
    "every_transform",
    "functions",
    "optimizers",
    "fsdp2",
    "sharded_after_attach",
    "tensor_parallel",
    "sums_left_open",
    "overflow",
    "collectives",
    "constant",
    "sharded_anew",
    "states",
    "states_of_one_process",
    "expanded",
    "refusals",
]


# FSDP2 on a CPU, and complex numbers by gloo, are younger than the oldest torch.
YOUNGER = [
    "functions",
    "fsdp2",
    "sharded_after_attach",
    "tensor_parallel",
    "states",
    "states_of_one_process",
    "refusals",
]
if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 8):
    CASES = [case for case in CASES if case not in YOUNGER]


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """What each process of `sharded_processes.py` says of each case: "ok", or what went wrong."""
    folder = tmp_path_factory.mktemp("processes")
    script = Path(__file__).parent / "sharded_processes.py"
    command = [sys.executable, str(script), str(folder), *CASES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(4)]


@pytest.mark.parametrize("case", CASES)
def test_in_four_processes(case: str, processes: list[dict[str, str]]) -> None:
    assert [said[case] for said in processes] == ["ok"] * 4
