"""The three steps by hand, with a reduction in between, as a pipeline of your own would do."""

import torch
from torch import nn

import znorm

torch.manual_seed(0)
net = nn.Linear(6, 4)
transform = znorm.chain(znorm.Centralize(), znorm.ClipGlobalNorm(1.0))
layout = znorm.Layout(net.named_parameters(), transform, model=net)

# Two workers hold half of each gradient's rows. Coefficients of halves cannot be merged;
# moments can, here by hand for the pieces of one whole tensor.
whole = torch.randn(4, 6)
pieces = [znorm.Layout([("piece", part)], znorm.ZNorm()) for part in whole.split(2)]
left, right = (
    znorm.measure([part], piece) for part, piece in zip(whole.split(2), pieces, strict=True)
)
merged = left.merge(right)
print("merged mean and std:", float(merged.mean), float(merged.std()))
print("of the whole tensor:", float(whole.mean()), float(whole.std(correction=0)))

gradients = [torch.randn_like(p) for p in net.parameters()]
znorm.apply_(gradients, znorm.decide(transform, znorm.measure(gradients, layout)))
print("norm of all gradients:", float(torch.cat([g.flatten() for g in gradients]).norm()))
