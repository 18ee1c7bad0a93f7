"""Draw what ZNorm does to Adam's steps: docs/figures/under-adam.svg.

    python docs/figures/under_adam.py [FILE]

One layer of 64 x 64 weights gets the same 2,000 random gradients twice: once by torch's Adam, once
by Adam with ZNorm. Only the scale of the gradients changes over time. Drawn is the length of the
second's step over that of the first.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import znorm

STEPS, SIDE = 2_000, 64

# By name: the scale of the gradient at a step. Each decay is spread over all of the steps.
SCALES: dict[str, Callable[[int], float]] = {
    "constant": lambda step: 1.0,
    "10-fold decay": lambda step: 10.0 ** (-step / STEPS),
    "100-fold decay": lambda step: 100.0 ** (-step / STEPS),
    "1,000-fold decay": lambda step: 1_000.0 ** (-step / STEPS),
}


def compare(scale: Callable[[int], float]) -> tuple[list[float], list[float]]:
    """Ratios of step lengths, and the cosines of the two steps, for each step."""
    generator = torch.Generator().manual_seed(0)
    weights = [nn.Parameter(torch.zeros(SIDE, SIDE, dtype=torch.float64)) for _ in range(2)]
    optimizers = [torch.optim.Adam([weight], lr=1e-3) for weight in weights]
    znorm.attach(optimizers[1], znorm.ZNorm())
    ratios, cosines = [], []
    for number in range(STEPS):
        gradient = torch.randn(SIDE, SIDE, generator=generator, dtype=torch.float64)
        steps = []
        for weight, optimizer in zip(weights, optimizers, strict=True):
            before = weight.detach().clone()
            weight.grad = gradient * scale(number)
            optimizer.step()
            steps.append((weight.detach() - before).flatten())
        plain, normalized = steps
        ratios.append(float(normalized.norm() / plain.norm()))
        cosines.append(float(torch.cosine_similarity(plain, normalized, 0)))
    return ratios, cosines


WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 380, 64, 150, 44, 46
LOWEST, HIGHEST = 0.7, 300.0
TICKS = (1, 3, 10, 30, 100, 300)
# Told apart by dashes as well as by colour, in both of them.
LOOKS = (
    ("one", "#3b5bb5", "#9db4ff", ""),
    ("two", "#1f7a4d", "#7fd6a8", "7 4"),
    ("three", "#a05a00", "#ffc069", "2 3"),
    ("four", "#a8324a", "#ff9dae", "9 3 2 3"),
)


def x_of(step: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * step / STEPS


def y_of(ratio: float) -> float:
    share = math.log(ratio / LOWEST) / math.log(HIGHEST / LOWEST)
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share


def draw(curves: dict[str, list[float]]) -> str:
    light = "".join(
        f".{name}{{stroke:{day}}}.{name}-text{{fill:{day}}}" for name, day, _, _ in LOOKS
    )
    dark = "".join(
        f".{name}{{stroke:{night}}}.{name}-text{{fill:{night}}}" for name, _, night, _ in LOOKS
    )
    ends = ", ".join(f"{name}: {ratios[-1]:.1f}" for name, ratios in curves.items())
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'font-family="system-ui, sans-serif" font-size="13">',
        "<title>Length of Adam's step with ZNorm over that without</title>",
        f"<desc>Over {STEPS:,} steps, by how the scale of the gradients decays. "
        f"At the end: {ends}.</desc>",
        "<style>.back{fill:#fff}.text{fill:#222}.grid{stroke:#ccc}.line{fill:none;stroke-width:2.5}"
        f"{light}@media (prefers-color-scheme:dark){{.back{{fill:#16181d}}.text{{fill:#e8e8e8}}"
        f".grid{{stroke:#444}}{dark}}}</style>",
        f'<rect class="back" width="{WIDTH}" height="{HEIGHT}"/>',
        f'<text class="text" x="{LEFT}" y="24">Step with ZNorm over step without, under Adam: '
        "times as long</text>",
    ]
    for tick in TICKS:
        y = y_of(tick)
        parts.append(
            f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
            f'<text class="text" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">'
            f"{tick}</text>"
        )
    for step in range(0, STEPS + 1, 500):
        parts.append(
            f'<text class="text" x="{x_of(step):.1f}" y="{HEIGHT - BOTTOM + 20}" '
            f'text-anchor="middle">{step:,}</text>'
        )
    parts.append(
        f'<text class="text" x="{x_of(STEPS / 2):.1f}" y="{HEIGHT - 8}" text-anchor="middle">'
        "step</text>"
    )
    for (label, ratios), (name, _, _, dashes) in zip(curves.items(), LOOKS, strict=True):
        points = " ".join(
            f"{x_of(step + 1):.1f},{y_of(ratios[step]):.1f}" for step in range(0, STEPS, 10)
        )
        parts.append(
            f'<polyline class="line {name}" stroke-dasharray="{dashes}" points="{points}"/>'
            f'<text class="{name}-text" x="{WIDTH - RIGHT + 8}" y="{y_of(ratios[-1]) + 4:.1f}">'
            f"{label}</text>"
        )
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("under-adam.svg")
    curves = {}
    for name, scale in SCALES.items():
        curves[name], cosines = compare(scale)
        print(
            f"{name}: {curves[name][-1]:.2f} times as long at the end, cosine {cosines[-1]:.4f}, "
            f"over all steps {min(curves[name]):.2f} to {max(curves[name]):.2f}"
        )
    file.write_text(draw(curves))
    print(file)


if __name__ == "__main__":
    main()
