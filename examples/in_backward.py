"""Stepping in backward: each gradient is freed as soon as its parameter has been updated."""

import torch
from torch import nn

import znorm

torch.manual_seed(0)
net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 1))
handle = znorm.in_backward(net, lambda p: torch.optim.Adam(p, lr=1e-2), znorm.ZNorm())
schedulers = [torch.optim.lr_scheduler.StepLR(o, 100) for o in handle.optimizers.values()]

x = torch.randn(256, 8)
y = x.square().sum(1, keepdim=True)
for step in range(201):
    loss = (net(x) - y).square().mean()
    loss.backward()  # this is the step
    for scheduler in schedulers:
        scheduler.step()
    if step % 50 == 0:
        print(f"step {step:3}: loss {loss.item():.3f}")
print("gradients left:", sum(p.grad is not None for p in net.parameters()))
