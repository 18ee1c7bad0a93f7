"""Each mistake that is easy to make here, made in a copy of the source: the tests must see it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TESTS = [
    "tests/transforms/test_accuracy.py",
    "tests/transforms/test_statements.py",
    "tests/test_attachment.py",
    "tests/test_layers.py",
    "tests/test_set_ups.py",
]

# What goes wrong, where, what stands there, and what a mistake would make of it.
MUTATIONS: dict[str, tuple[str, str, str]] = {
    "eps dropped": (
        "transforms/zscore.py",
        "scale = 1 / (std.masked_fill(constant, 1.0) + self.eps)",
        "scale = 1 / std.masked_fill(constant, 1.0)",
    ),
    "center and scale swapped": (
        "transforms/zscore.py",
        "return Affine(center, scale)",
        "return Affine(scale, center)",
    ),
    "scaled before it is centered": (
        "kernels/reference.py",
        """        for center in centers:
            wide.sub_(center)
        wide.mul_(scale)
""",
        """        wide.mul_(scale)
        for center in centers:
            wide.sub_(center)
""",
    ),
    "one pass however far the center": (
        "engine/execute.py",
        "close = (center * scale).square() * count <= m2",
        "close = scale > 0",
    ),
    "sums that are not shifted, whatever they lose": (
        "kernels/reference.py",
        "if mean * mean * n <= m2 < math.inf:",
        "if m2 < math.inf:",
    ),
    "sample for population": (
        "transforms/zscore.py",
        "correction: int = 0",
        "correction: int = 1",
    ),
    "mean not split": (
        "kernels/reference.py",
        "return (high, (center - high).to(compute)), scale.to(compute)",
        "return (high,), scale.to(compute)",
    ),
    "axis off by one": (
        "entries.py",
        "return LayerSlice(cut, shape + parts, (_output_dim(cut, info),), first_unit)",
        "return LayerSlice(cut, shape + parts, (1,), first_unit)",
    ),
    "eps dropped in the kernel": (
        "kernels/cpu/driver.py",
        "scale = inv_scale / (std + eps)",
        "scale = inv_scale / std",
    ),
    "sample for population in the kernel": (
        "kernels/cpu/driver.py",
        "std = np.sqrt(m2 / max(n - correction, 1.0)) * inv_scale",
        "std = np.sqrt(m2 / max(n - 1, 1.0)) * inv_scale",
    ),
    "mean not split in the kernel": (
        "kernels/cpu/driver.py",
        "low = np.float32(center - np.float64(high))",
        "low = np.float32(0)",
    ),
    "decided mean not split": (
        "kernels/cpu/plan.py",
        "self.coefficients[1] = wide - self.coefficients[0]",
        "self.coefficients[1] = 0",
    ),
    "scaled before it is centered in the kernel": (
        "kernels/cpu/kernels.py",
        "store(g, i, ((load(g, i) - high) - low) * scale)",
        "store(g, i, (load(g, i) * scale - high) - low)",
    ),
    "unscale done twice": (
        "engine/gradients.py",
        "cast(Any, optimizer).grad_scale = None",
        "pass",
    ),
    "closure run after the transform": (
        "step_hooks.py",
        "    if len(places) != 1:\n",
        "    if True:\n",
    ),
}


def run(source: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *TESTS]
    environment = {**os.environ, "PYTHONPATH": str(source)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    source = tmp_path / "src"
    shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
    return source


@pytest.mark.parametrize("mistake", MUTATIONS)
def test_what_a_mistake_is_made_of_stands_in_the_source_once(mistake: str) -> None:
    path, right, _ = MUTATIONS[mistake]
    assert (ROOT / "src" / "znorm" / path).read_text().count(right) == 1


@pytest.mark.slow
def test_the_copy_is_what_is_tested_and_passes_as_it_is(copied: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-c", "import znorm; print(znorm.__file__)"],
        env={**os.environ, "PYTHONPATH": str(copied)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == str(copied / "znorm" / "__init__.py")
    result = run(copied)
    assert result.returncode == 0, result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MUTATIONS)
def test_a_mistake_is_caught(mistake: str, copied: Path) -> None:
    path, right, wrong = MUTATIONS[mistake]
    file = copied / "znorm" / path
    file.write_text(file.read_text().replace(right, wrong))
    result = run(copied)
    # 1: tests ran and some failed; an error in collection would be 2 or more.
    assert result.returncode == 1, result.stdout
    assert "failed" in result.stdout
