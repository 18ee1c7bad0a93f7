"""Synthetic slices that look a little like a brain with a tumour: for trying segmenters.

Nothing here comes from a scan. Each slice is an ellipse of smooth tissue with ventricles; a blob,
where there is one, is brighter in the second channel. So is a distractor of the same kind of shape,
which is brighter in the first channel too: a threshold alone does not tell the two apart.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import torch

from znorm.lab.datasets.dataset import Dataset, Split
from znorm.lab.datasets.source import DataSource
from znorm.lab.datasets.task import Task

__all__ = ["TASK", "load"]

SIDE = 64
SLICES = 8
PATIENTS = {"train": 24, "validation": 6, "test": 10}

Grid = npt.NDArray[np.float64]


def load() -> Dataset:
    """24, 6 and 10 made-up patients of 8 slices of 64x64 pixels; a quarter of them hold no blob."""
    splits = {}
    for split, patients in PATIENTS.items():
        images, masks, names = [], [], []
        for patient in range(patients):
            for number, (image, mask) in enumerate(_patient(f"{split} {patient}")):
                images.append(image)
                masks.append(mask)
                names.append(f"{split}-{patient}_{number}")
        splits[split] = Split(
            torch.from_numpy(np.stack(images)),
            torch.from_numpy(np.stack(masks)),
            tuple(names),
            tuple(name.rpartition("_")[0] for name in names),
        )
    return Dataset(
        splits["train"],
        splits["validation"],
        splits["test"],
        ("no blob", "blob"),
        ("Synthetic: drawn by a program, not scanned. Scores say nothing about patients.",),
    )


def _patient(name: str) -> list[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]]:
    seed = int.from_bytes(hashlib.sha256(f"phantom {name}".encode()).digest()[:8], "little")
    random = np.random.Generator(np.random.PCG64(seed))
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    angle = random.uniform(-0.3, 0.3)
    width, height = random.uniform(0.62, 0.72), random.uniform(0.78, 0.88)
    blob, distractor = _place(random), _place(random)
    first = int(random.integers(0, 3))  # slices first .. first + 5 meet the blob
    slices = []
    for number in range(SLICES):
        size = 1 - 0.06 * abs(number - SLICES / 2)
        head = _ellipse(x, y, 0, 0, width * size, height * size, angle)
        image = np.zeros((3, SIDE, SIDE))
        tissue = 0.45 + 0.08 * _smooth(random)
        ventricles = np.maximum(
            _ellipse(x, y, -0.12, 0, 0.07 * size, 0.25 * size, angle + 0.2),
            _ellipse(x, y, 0.12, 0, 0.07 * size, 0.25 * size, angle - 0.2),
        )
        for channel, dark in enumerate((0.15, 0.2, 0.1)):
            image[channel] = head * (tissue * (1 - ventricles) + dark * ventricles)
        depth = 1 - ((number - first - 2.5) / 3) ** 2
        mask = np.zeros((SIDE, SIDE), dtype=np.uint8)
        if depth > 0:
            inside = _blob(x, y, blob, np.sqrt(depth)) * (head > 0.5)
            image[1] += 0.3 * inside
            image[2] += 0.1 * inside
            mask = (inside > 0.5).astype(np.uint8)
        other = _blob(x, y, distractor, 0.8) * (head > 0.5)
        image[0] += 0.25 * other
        image[1] += 0.3 * other
        image += random.normal(0, 0.03, image.shape)
        slices.append(((image * 255).clip(0, 255).astype(np.uint8), mask))
    return slices


def _place(random: np.random.Generator) -> tuple[float, float, float, Grid]:
    """Centre, radius, and the amplitudes of an outline that is not quite round."""
    return (
        float(random.uniform(-0.35, 0.35)),
        float(random.uniform(-0.45, 0.45)),
        float(random.uniform(0.12, 0.24)),
        random.normal(0, 0.12, (2, 4)),
    )


def _blob(x: Grid, y: Grid, place: tuple[float, float, float, Grid], share: float) -> Grid:
    """1 inside, 0 outside, smooth over about a pixel."""
    left, top, radius, waves = place
    angle = np.arctan2(y - top, x - left)
    outline = 1 + sum(
        waves[0, k] * np.cos((k + 2) * angle) + waves[1, k] * np.sin((k + 2) * angle)
        for k in range(4)
    )
    distance: Grid = np.hypot(x - left, y - top) / (radius * share * np.maximum(outline, 0.4))
    return np.asarray(1 / (1 + np.exp((distance - 1) * 12)))


def _ellipse(
    x: Grid, y: Grid, left: float, top: float, width: float, height: float, angle: float
) -> Grid:
    u = (x - left) * np.cos(angle) + (y - top) * np.sin(angle)
    v = (y - top) * np.cos(angle) - (x - left) * np.sin(angle)
    return np.asarray(1 / (1 + np.exp((np.hypot(u / width, v / height) - 1) * 25)))


def _smooth(random: np.random.Generator) -> Grid:
    """Waves of a few random directions: tissue that is not flat."""
    y, x = np.mgrid[0 : np.pi : SIDE * 1j, 0 : np.pi : SIDE * 1j]
    field = np.zeros((SIDE, SIDE))
    for _ in range(6):
        across, down = random.uniform(-3, 3, 2)
        field += np.sin(across * x + down * y + random.uniform(0, 2 * np.pi))
    return field / 6


TASK = Task(
    data=DataSource(
        name="phantom",
        about="synthetic slices of 64x64 pixels with blobs, drawn when asked for",
        load=lambda data: load(),
    ),
    label="Phantom (synthetic)",
    about="built in: synthetic slices of 64x64 pixels with blobs to segment",
    output="mask",
    model="attention_unet",
    loss="tversky",
    epochs=4,
    batch_size=16,
    learning_rate=1e-3,
)
