"""Every optimizer of torch, attached, beside the same bare one that is fed the right gradient.

The rows are fixed: each entry of torch's own table of optimizers, in each variant, dtype and way of
stepping. A row either runs, over every set of options that torch tests that optimizer with, or says
why it cannot. ``python tests/optimizer_table.py`` writes the table of the documentation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.testing._internal.common_optimizers import OptimizerInfo, optim_db

import oracle
import znorm

VARIANTS = ("default", "foreach", "fused")
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
WAYS = ("neither", "closure", "scaler")
STEPS = 3
SCALE = 1024.0


@dataclass(frozen=True)
class TableRow:
    """One line of the table; ``reason`` says why it cannot run, and is empty if it can."""

    info: OptimizerInfo
    variant: str
    dtype: str
    way: str
    reason: str

    @property
    def optimizer_class(self) -> type[torch.optim.Optimizer]:
        return self.info.optim_cls  # annotated there as an instance

    @property
    def key(self) -> tuple[str, str, str, str]:
        return (self.optimizer_class.__name__, self.variant, self.dtype, self.way)

    def __str__(self) -> str:
        return "-".join(self.key)


def rows() -> list[TableRow]:
    return [
        TableRow(info, variant, dtype, way, _reason(info, variant, way))
        for info in optim_db
        for variant in VARIANTS
        for dtype in DTYPES
        for way in WAYS
    ]


def _reason(info: OptimizerInfo, variant: str, way: str) -> str:
    if info.only_supports_sparse_grads:
        return "torch's takes sparse gradients alone, which are refused by name"
    if variant == "foreach" and "foreach" not in info.supported_impls:
        return "torch has no such variant"
    if variant == "fused" and "cpu" not in info.supports_fused_on:
        return "torch has no such variant on a CPU"
    if info.step_requires_closure and way != "closure":
        return "torch's step needs a closure, and GradScaler takes none"
    return ""


def options_of(row: TableRow) -> Iterator[dict[str, Any]]:
    """Every set of options that torch tests the optimizer with, in the row's variant."""
    variants = {} if row.variant == "default" else {row.variant: True}
    for sample in row.info.optim_inputs_func(device="cpu"):
        options = dict(sample.kwargs)
        if row.variant != "default" and (
            options.get("differentiable") or options.get("capturable")
        ):
            continue  # no two variants at a time
        for name in VARIANTS[1:]:
            options.pop(name, None)
        yield options | variants


def start(row: TableRow) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    # Muon is for matrices alone.
    shapes = [(24, 40)] if row.optimizer_class.__name__ == "Muon" else [(24, 40), (8, 3, 3, 3)]
    return [
        nn.Parameter(torch.randn(shape, generator=generator).to(DTYPES[row.dtype]))
        for shape in shapes
    ]


def gradients(parameters: list[nn.Parameter], step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step + 1)
    return [
        (0.01 * torch.randn(p.shape, generator=generator) + 0.003).to(p.dtype) for p in parameters
    ]


def g_hat(gradient: Tensor) -> Tensor:
    """float64's z-score, rounded once."""
    return oracle.whole(oracle.z_score, gradient).to(gradient.dtype)


def train_bare(row: TableRow, options: dict[str, Any]) -> list[nn.Parameter]:
    parameters = start(row)
    optimizer = row.optimizer_class(parameters, **_own(options))
    for step in range(STEPS):
        right = [g_hat(g) for g in gradients(parameters, step)]
        for parameter, gradient in zip(parameters, right, strict=True):
            parameter.grad = gradient.clone()
        if row.way == "closure":
            optimizer.step(_closure(parameters, right))
        else:
            optimizer.step()
    return parameters


def train_attached(row: TableRow, options: dict[str, Any], transform: Any) -> list[nn.Parameter]:
    parameters = start(row)
    optimizer = row.optimizer_class(parameters, **_own(options))
    znorm.attach(optimizer, transform)
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE, enabled=row.way == "scaler")
    scale = float(scaler.scale(torch.ones(())))
    for step in range(STEPS):
        raw = [g * scale for g in gradients(parameters, step)]
        if row.way == "closure":
            optimizer.step(_closure(parameters, raw))
            continue
        for parameter, gradient in zip(parameters, raw, strict=True):
            parameter.grad = gradient
        scaler.step(optimizer)
        scaler.update(scale)
    return parameters


def _own(options: dict[str, Any]) -> dict[str, Any]:
    """Tensors among the options are the optimizer's to change."""
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in options.items()}


def _closure(parameters: list[nn.Parameter], given: list[Tensor]) -> Any:
    def closure() -> Tensor:
        for parameter, gradient in zip(parameters, given, strict=True):
            parameter.grad = gradient.clone()
        return torch.tensor(1.0)

    return closure


@dataclass(frozen=True)
class Outcome:
    """How far the attached optimizer is from the bare one after all steps."""

    error: float
    """The largest difference over the largest weight."""
    same: float
    """The share of entries with the same bits."""
    settings: int
    still: int
    """Settings in which torch's own step left a whole tensor as it was."""


def run(row: TableRow) -> Outcome:
    error, equal, total, settings, still = 0.0, 0, 0, 0, 0
    for options in options_of(row):
        expected = [p.detach() for p in train_bare(row, options)]
        found = [p.detach() for p in train_attached(row, options, znorm.ZNorm())]
        largest = max(float(p.abs().max()) for p in expected)
        for one, other in zip(expected, found, strict=True):
            difference = float((one.double() - other.double()).abs().max()) / largest
            error = max(error, difference) if math.isfinite(difference) else math.inf
            equal += int((one == other).sum())
            total += one.numel()
        settings += 1
        still += any(torch.equal(p, q) for p, q in zip(expected, start(row), strict=True))
    return Outcome(error, equal / total, settings, still)


def markdown() -> str:
    lines = [
        "# Every optimizer of torch, attached",
        "",
        "Each optimizer with ZNorm attached, beside the same bare optimizer, in the same dtype",
        "and variant, that is fed the z-score of float64 rounded once: after three steps, over all",
        "sets of options that torch tests it with. Error: the largest difference over the largest",
        "weight. Same: the share of entries with the same bits.",
        f"Written by `python tests/optimizer_table.py` with torch {torch.__version__}.",
        "",
        "| optimizer | variant | dtype | step | settings | error | same |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows():
        if row.reason:
            result = f"not run | {row.reason} | |"
        else:
            outcome = run(row)
            result = f"{outcome.settings} | {outcome.error:.1e} | {outcome.same:.2%} |"
            if outcome.still:
                note = f"(in {outcome.still} torch itself left a tensor as it was)"
                result = f"{result[:-1]}{note} |"
        lines.append(f"| {' | '.join(row.key)} | {result}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(__file__).parents[1].joinpath("docs", "optimizers.md").write_text(markdown())
