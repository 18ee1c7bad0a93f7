"""accelerate: attach, prepare, train; with gradient accumulation a step transforms once."""

import torch
from accelerate import Accelerator
from torch import nn

import znorm

torch.manual_seed(0)
rows = torch.randn(256, 16)
labels = (rows[:, 0] > 0).long()
data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(rows, labels), batch_size=32)

accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 2))
optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
attachment = znorm.attach(optimizer, znorm.ZNorm(), model=net)
net, optimizer, data = accelerator.prepare(net, optimizer, data)

for _epoch in range(5):
    for inputs, targets in data:
        with accelerator.accumulate(net):
            loss = nn.functional.cross_entropy(net(inputs), targets)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()

for name, values in attachment.receipt().items():
    print(f"{name}: {values['steps']} steps")
