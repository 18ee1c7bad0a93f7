"""ZNorm under FSDP2: attached as anywhere else, on each process.

Each process holds a shard of every weight and gradient. At a step it measures its shards; three
numbers a layer cross between processes, all decide the same, and each writes its own shard. Here
two processes on a CPU; the net is also trained by one of them alone, and ends with the same
weights.
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
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4))


def train(rank, folder):
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=PROCESSES
    )
    sharded, alone = make_net(), make_net()
    fully_shard(sharded, mesh=init_device_mesh("cpu", (PROCESSES,)))
    optimizers = [torch.optim.Adam(net.parameters(), lr=1e-2) for net in (sharded, alone)]
    attachments = [
        znorm.attach(optimizer, TRANSFORM, model=net)
        for optimizer, net in zip(optimizers, (sharded, alone), strict=True)
    ]

    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
    for _ in range(20):
        for net, part in ((sharded, x.chunk(PROCESSES)[rank]), (alone, x)):
            net.zero_grad()
            (net(part) - part[:, :4]).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()

    with torch.no_grad():
        largest = max(
            float((p.full_tensor() - q).abs().max())
            for p, q in zip(sharded.parameters(), alone.parameters(), strict=True)
        )
    assert largest < 1e-5, largest
    if rank == 0:
        print(attachments[0].describe())
        print(f"after 20 steps the weights differ from one process's by at most {largest:.1e}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(train, args=(folder,), nprocs=PROCESSES)
