"""What the library's kernels give, to the bit: writes a line of JSON for each case.

    python tests/bits/record.py > tests/bits/cpu.json
    ZNORM_KERNELS=reference python tests/bits/record.py > tests/bits/reference.json
    TRITON_INTERPRET=1 ZNORM_KERNELS=triton python tests/bits/record.py > tests/bits/triton.json

A change that is not meant to change results leaves these files as they are; one that is meant to
writes them anew, and says why. Bits are those of one kind of processor and one version of torch,
which the files name; sums and norms beside them hold everywhere, to a tolerance.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

import znorm

STEPS = 3
SMALL = os.environ.get("TRITON_INTERPRET") == "1"  # the interpreter takes seconds for large ones

TRANSFORMS = {
    "none": None,
    "znorm": znorm.ZNorm(),
    "znorm_channel": znorm.ZNorm(granularity="channel"),
    "znorm_all": znorm.ZNorm(select="all", correction=1, eps=1e-3),
    "center": znorm.ZNorm(scale=False),
    "scale": znorm.ZNorm(center=False),
    "centralize": znorm.Centralize(),
    "unit_norm": znorm.UnitNorm(),
    "clip_value": znorm.ClipValue(0.1),
    "clip_norm": znorm.ClipNorm(0.5),
    "clip_global_norm": znorm.ClipGlobalNorm(0.5),
    "adaptive_clip": znorm.AdaptiveClip(0.01),
    "chain": znorm.chain(znorm.Centralize(), znorm.ClipGlobalNorm(1.0)),
    "value_then_znorm": znorm.chain(znorm.ClipValue(0.1), znorm.ZNorm(), znorm.ClipNorm(3.0)),
}

# What is looked at where each case takes seconds.
_CHOSEN = ("none", "znorm", "clip_norm", "chain")

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": lambda p, **own: znorm.optim.Adam(p, lr=0.01, weight_decay=0.1, **own),
    "adamw": lambda p, **own: znorm.optim.AdamW(p, lr=0.01, weight_decay=0.1, **own),
    "sgd": lambda p, **own: znorm.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, **own),
}


def net(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    modules = [
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ConvTranspose2d(8, 6, 3, groups=2),
        nn.Embedding(11, 5),
        nn.MultiheadAttention(8, 2),
        nn.Linear(7, 1),
    ]
    if not SMALL:
        modules.append(nn.Linear(700, 400))  # more than one thread's share
    return nn.Sequential(*modules).to(dtype)


def fill_gradients(parameters: Iterable[Tensor], step: int) -> None:
    draw = torch.Generator().manual_seed(step)
    for number, parameter in enumerate(parameters):
        wide = torch.randn(parameter.shape, generator=draw) * 0.2 + 0.05 * (number % 3)
        parameter.grad = wide.to(parameter.dtype)


def digest(tensors: Iterable[Tensor]) -> dict[str, object]:
    kept = [tensor.detach().contiguous() for tensor in tensors]
    bits = hashlib.sha256()
    for tensor in kept:
        bits.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    flat = torch.cat([tensor.double().flatten() for tensor in kept])
    return {"bits": bits.hexdigest()[:16], "sum": float(flat.sum()), "norm": float(flat.norm())}


def attached(transform: object, dtype: torch.dtype) -> dict[str, object]:
    """Gradients as a transform leaves them, and its receipt."""
    model = net(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    attachment = znorm.attach(optimizer, transform, model=model)  # type: ignore[arg-type]
    written: list[Tensor] = []
    for step in range(STEPS):
        fill_gradients(model.parameters(), step)
        optimizer.step()
        written += [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return {"gradients": digest(written), "receipt": digest([receipt_of(attachment)])}


def receipt_of(attachment: znorm.Attachment) -> Tensor:
    rows = attachment.receipt().values()
    return torch.tensor([list(row.values()) for row in rows], dtype=torch.float64)


def updated(
    make: Callable[..., torch.optim.Optimizer],
    transform: object,
    dtype: torch.dtype,
    scale: float | None = None,
) -> dict[str, object]:
    """Weights and states after steps of an optimizer of this package."""
    model = net(dtype)
    optimizer = make(model.parameters(), transform=transform, model=model)
    for step in range(STEPS):
        fill_gradients(model.parameters(), step)
        if scale is not None:
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter.grad.mul_(scale)
            optimizer.grad_scale = torch.tensor(scale)  # type: ignore[attr-defined]
            optimizer.found_inf = torch.tensor(0.0)  # type: ignore[attr-defined]
        optimizer.step()
    states = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, Tensor)]
    found = {"weights": digest(model.parameters()), "states": digest(states)}
    attachment = optimizer.attachment  # type: ignore[attr-defined]
    if attachment is not None:
        found["receipt"] = digest([receipt_of(attachment)])
    return found


def cases() -> dict[str, dict[str, object]]:
    found = {}
    dtypes = [torch.float32] if SMALL else [torch.float32, torch.bfloat16, torch.float64]
    chosen = dict.fromkeys(_CHOSEN if SMALL else TRANSFORMS)
    for dtype in dtypes:
        kind = str(dtype).removeprefix("torch.")
        for name in chosen:
            transform = TRANSFORMS[name]
            found[f"attach {name} {kind}"] = attached(transform, dtype)
            for optimizer, make in OPTIMIZERS.items():
                found[f"{optimizer} {name} {kind}"] = updated(make, transform, dtype)
    found["adam znorm scaled"] = updated(
        OPTIMIZERS["adam"], TRANSFORMS["znorm"], torch.float32, scale=1024.0
    )
    found["sgd chain scaled"] = updated(
        OPTIMIZERS["sgd"], TRANSFORMS["chain"], torch.float32, scale=1024.0
    )
    gradients = [torch.linspace(-1, 2, 1000), torch.linspace(0, 1, 7), torch.ones(1)]
    znorm.z_score_(gradients)
    found["z_score_"] = {"gradients": digest(gradients)}
    return found


def machine() -> dict[str, str]:
    """What bits depend on."""
    flags = ""
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        told = [line.partition(":")[2].split() for line in lines if line.startswith("flags")]
        flags = " ".join(sorted(told[0])) if told else ""
    return {
        "torch": torch.__version__.partition("+")[0],
        "machine": platform.machine(),
        "features": hashlib.sha256(flags.encode()).hexdigest()[:16],
    }


def main() -> None:
    torch.set_num_threads(2)
    record = {"made on": machine(), "cases": cases()}
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
