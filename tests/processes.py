"""Two processes with real shards, for `test_shards.py`: ``python processes.py FOLDER CASE...``."""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn

import znorm
from kit import net

CLIP = znorm.ClipGlobalNorm(0.01)


def backward(model: nn.Module) -> None:
    model.zero_grad()
    images = torch.randn(16, 6, generator=torch.Generator().manual_seed(1))
    model(images).square().mean().backward()


def refused(call: Any, words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        call()


def fsdp1(rank: int) -> None:
    """In both forms, given the model, a module inside of it, or nothing."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    for original in (False, True):
        for transform in (znorm.ZNorm(), znorm.ClipNorm(1.0)):
            wrapped = FullyShardedDataParallel(
                net(4), use_orig_params=original, device_id=torch.device("cpu")
            )
            optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
            for model in (None, wrapped, wrapped.module):
                refused(
                    lambda o=optimizer, m=model, t=transform: znorm.attach(o, t, model=m),
                    "FSDP1",
                )


def zero(rank: int) -> None:
    """Outside it is right; inside what needs all gradients is refused, and nothing else."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    plain = net(4)
    reference = torch.optim.SGD(plain.parameters(), lr=0.1)
    znorm.attach(reference, CLIP)
    model = net(4)
    sharded = ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, lr=0.1)
    refused(lambda: znorm.attach(sharded.optim, CLIP), "one process's share")
    refused(
        lambda: ZeroRedundancyOptimizer(
            net(4).parameters(), znorm.optim.SGD, lr=0.1, transform=CLIP
        ),
        "one process's share",
    )
    attachment = znorm.attach(sharded, CLIP, model=model)
    refused(lambda: znorm.attach(sharded.optim, znorm.ZNorm()), "attached already")
    for _ in range(2):
        for m, o in ((plain, reference), (model, sharded)):
            backward(m)
            o.step()
    assert attachment.receipt()["0.weight"]["steps"] == 2
    for one, other in zip(plain.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-7)
    # Each process has a share of the layers: a rule by name matches in one of them alone. Of one
    # parameter the second process has nothing at all.
    rules = znorm.ZNorm(select=[("2.weight", False)])
    for several in (True, False):
        inside, outside = net(4), net(4)
        ours = ZeroRedundancyOptimizer(
            list(inside.parameters()) if several else [inside[0].weight],
            znorm.optim.SGD,
            lr=0.1,
            transform=rules,
            model=inside,
        )
        theirs = torch.optim.SGD(outside.parameters() if several else [outside[0].weight], lr=0.1)
        znorm.attach(theirs, rules if several else znorm.ZNorm(), model=outside)
        for m, o in ((inside, ours), (outside, theirs)):
            backward(m)
            o.step()
        for one, other in zip(inside.parameters(), outside.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
        refused(lambda o=ours: znorm.attach(o, znorm.ZNorm()), "attached already")


def ddp(rank: int) -> None:
    """Each process has a part of the batch, and steps as one process with all of it."""
    transform = znorm.chain(znorm.ZNorm(), znorm.ClipGlobalNorm(1.0))
    plain, model = net(4), net(4)
    wrapped = nn.parallel.DistributedDataParallel(model)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (plain, model)]
    for m, o in zip((plain, wrapped), optimizers, strict=True):
        znorm.attach(o, transform, model=m)
    images = torch.randn(16, 6, generator=torch.Generator().manual_seed(1))
    for _ in range(3):
        for m, part in ((plain, images), (wrapped, images.chunk(2)[rank])):
            m.zero_grad()
            m(part).square().mean().backward()
        for o in optimizers:
            o.step()
    for one, other in zip(plain.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def process(rank: int, folder: str, cases: list[str]) -> None:
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    torch.set_num_threads(1)
    said = {}
    for case in cases:
        try:
            globals()[case](rank)
            said[case] = "ok"
        except Exception:
            said[case] = traceback.format_exc()
    Path(folder, f"rank-{rank}.json").write_text(json.dumps(said))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.multiprocessing.spawn(process, args=(sys.argv[1], sys.argv[2:]), nprocs=2)
