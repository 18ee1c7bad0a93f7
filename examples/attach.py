"""ZNorm in a training loop of your own: one line, and a table of what it does."""

import torch
from torch import nn

import znorm

torch.manual_seed(0)
net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)

attachment = znorm.attach(optimizer, znorm.ZNorm(), model=net)
print(attachment.describe())

x = torch.randn(256, 8)
y = x.square().sum(1, keepdim=True)
for step in range(201):
    loss = (net(x) - y).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step:3}: loss {loss.item():.3f}")

for name, seen in attachment.receipt().items():
    print(f"{name}: norm {seen['norm_before']:.3f} before, {seen['norm_after']:.3f} after")
