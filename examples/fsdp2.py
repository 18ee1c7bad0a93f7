"""ZNorm under FSDP2: the three steps, with moments merged over the processes.

`znorm.attach` refuses sharded gradients, since the mean of a shard is not that of the layer. What
crosses processes here is three numbers a layer; each process then writes its own shard. Here two
processes on a CPU; the net is also trained by one of them alone, and ends with the same weights.
"""

import tempfile

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import znorm

PROCESSES = 2
TRANSFORM = znorm.chain(znorm.ZNorm(), znorm.ClipGlobalNorm(10.0))


def make_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))


def merged(moments):
    """The moments of all shards together: one collective for the whole list of layers."""
    mine = torch.stack([moments.count, moments.mean, moments.m2])
    every = [torch.empty_like(mine) for _ in range(PROCESSES)]
    dist.all_gather(every, mine)
    first, *others = (znorm.Moments(*rows, layout=moments.layout) for rows in every)
    for other in others:
        first = first.merge(other)
    return first


def train(rank, folder):
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=PROCESSES
    )
    sharded, alone = make_net(), make_net()
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
    mesh = init_device_mesh("cpu", (PROCESSES,))
    fully_shard(sharded, mesh=mesh)
    optimizers = [torch.optim.Adam(net.parameters(), lr=1e-2) for net in (sharded, alone)]
    znorm.attach(optimizers[1], TRANSFORM, model=alone)
    try:
        znorm.attach(optimizers[0], TRANSFORM, model=sharded)
    except TypeError as error:
        refused = str(error)

    # Each dim 0 here divides by the processes. A layout is of units that are whole tensors, as
    # ZNorm's and the norms' are; an output channel lies in one process, and needs no merging.
    shards = [(name, p.to_local()) for name, p in sharded.named_parameters()]
    layout = znorm.Layout(shards, TRANSFORM)
    for _ in range(20):
        for net, part in ((sharded, x.chunk(PROCESSES)[rank]), (alone, x)):
            net.zero_grad()
            (net(part) - part[:, :4]).square().mean().backward()
        gradients = [p.grad.to_local() for p in sharded.parameters()]
        znorm.apply_(gradients, znorm.decide(TRANSFORM, merged(znorm.measure(gradients, layout))))
        for optimizer in optimizers:
            optimizer.step()

    with torch.no_grad():
        largest = max(
            float((p.full_tensor() - q).abs().max())
            for p, q in zip(sharded.parameters(), alone.parameters(), strict=True)
        )
    assert largest < 1e-5, largest
    if rank == 0:
        print("attach:", refused)
        print(f"after 20 steps the weights differ from one process's by at most {largest:.1e}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(train, args=(folder,), nprocs=PROCESSES)
