"""A comparison that is killed at random moments ends with the very bits of an undisturbed one."""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from znorm.lab.runs.survey import find

pytestmark = pytest.mark.slow

ARGUMENTS = ["compare", "--methods", "baseline,znorm", "--seeds", "2"]
ARGUMENTS += ["--epochs", "6", "--limit", "320", "--out"]


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


def saved_epochs(root: Path) -> int:
    return sum(len(run.history) for run in find(root)) if root.exists() else 0


def test_sigkill_at_five_random_moments_changes_no_bit(tmp_path: Path) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    subprocess.run(command(undisturbed), check=True, capture_output=True)
    epoch = statistics.median(e["seconds"] for run in find(undisturbed) for e in run.history)

    moments = random.Random()
    seed = moments.randrange(2**32)
    moments.seed(seed)
    for kill in range(5):
        before = saved_epochs(killed)
        process = subprocess.Popen(
            command(killed), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        # Within one and a half epochs after the next one is saved: of 24, some are then always
        # kept, and five kills come before the end, however slow the machine starts.
        while saved_epochs(killed) <= before and process.poll() is None:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 1.5 * epoch))
        assert process.poll() is None, f"ended before kill {kill}; seed of the moments: {seed}"
        process.kill()
        process.wait()
    final = subprocess.run(command(killed), capture_output=True, text=True, check=False)
    assert final.returncode == 0, (seed, final.stderr)
    assert numbers(killed) == numbers(undisturbed), f"seed of the moments: {seed}"
