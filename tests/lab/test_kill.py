"""A comparison that is killed at random moments ends with the very bits of an undisturbed one."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from znorm.lab.store import find

pytestmark = pytest.mark.slow

ARGUMENTS = ["compare", "--methods", "baseline,znorm", "--seeds", "2"]
ARGUMENTS += ["--epochs", "4", "--limit", "320", "--out"]


def numbers(root: Path) -> dict[str, Any]:
    """Results and histories of all runs, times aside."""
    found = {}
    for run in find(root):
        result = dict(run.result or {})
        result.pop("seconds")
        history = [{k: v for k, v in e.items() if k != "seconds"} for e in run.history]
        found[str(run.folder.relative_to(root))] = (result, history)
    return found


def command(out: Path) -> list[str]:
    return [sys.executable, "-m", "znorm.lab", *ARGUMENTS, str(out)]


def test_sigkill_at_five_random_moments_changes_no_bit(tmp_path: Path) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    begun = time.monotonic()
    subprocess.run(command(undisturbed), check=True, capture_output=True)
    length = time.monotonic() - begun

    moments = random.Random()
    seed = moments.randrange(2**32)
    moments.seed(seed)
    kills = 0
    while kills < 5:
        process = subprocess.Popen(
            command(killed), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            process.wait(timeout=moments.uniform(0.1, 0.6) * length)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
        else:
            break  # it got to its end between kills; the rest below checks that nothing moved
    final = subprocess.run(command(killed), capture_output=True, text=True, check=False)
    assert final.returncode == 0, (seed, final.stderr)
    assert numbers(killed) == numbers(undisturbed), f"seed of the moments: {seed}"
    assert kills >= 2, f"only {kills} kills; seed of the moments: {seed}"
    assert not list(killed.rglob("*.tmp")) or all(run.result is not None for run in find(killed))
