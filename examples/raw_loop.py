"""A training script of one's own with ZNorm: mixed precision, accumulation, schedule, resume."""

from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import znorm

CHECKPOINT = Path("checkpoint.pt")
EPOCHS, ACCUMULATE = 6, 2


def make():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 1))
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-2, weight_decay=1e-2)
    # The one line. A checkpoint does not hold it: a script that resumes comes by here, too.
    znorm.attach(optimizer, znorm.ZNorm(), model=net)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    return net, optimizer, schedule


def train(until):
    net, optimizer, schedule = make()
    first = 0
    if CHECKPOINT.exists():
        saved = torch.load(CHECKPOINT)
        net.load_state_dict(saved["net"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        first = saved["epoch"] + 1
    for epoch in range(first, until):
        total = 0.0
        order = torch.Generator().manual_seed(epoch)
        batches = DataLoader(DATA, batch_size=32, shuffle=True, generator=order)
        for number, (x, y) in enumerate(batches, start=1):
            with torch.autocast("cpu", torch.bfloat16):
                loss = (net(x) - y).square().mean() / ACCUMULATE
            loss.backward()
            total += loss.item()
            if number % ACCUMULATE == 0:
                optimizer.step()  # transforms the sum of what was accumulated, once
                optimizer.zero_grad()
        schedule.step()
        print(f"epoch {epoch}: loss {ACCUMULATE * total / len(batches):.1f}")
        torch.save(
            {
                "net": net.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "epoch": epoch,
            },
            CHECKPOINT,
        )
    return net, optimizer


inputs = torch.randn(256, 8, generator=torch.Generator().manual_seed(1))
DATA = TensorDataset(inputs, inputs.square().sum(1, keepdim=True))

whole, optimizer = train(EPOCHS)
attachment = znorm.attachment_of(optimizer)
print(attachment.describe())
for name, seen in attachment.receipt().items():
    print(f"{name}: norm {seen['norm_before']:.2f} before, {seen['norm_after']:.2f} after")

CHECKPOINT.unlink()
train(EPOCHS // 2)  # interrupted here
resumed, _ = train(EPOCHS)
pairs = zip(whole.parameters(), resumed.parameters(), strict=True)
assert all(torch.equal(p, q) for p, q in pairs)
print("interrupted and resumed: the same weights")
