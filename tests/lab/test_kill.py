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
    subprocess.run([sys.executable, "-m", "znorm.lab", "list", "tasks"], check=True)
    start = time.monotonic() - begun
    begun = time.monotonic()
    subprocess.run(command(undisturbed), check=True, capture_output=True)
    work = time.monotonic() - begun - start

    moments = random.Random()
    seed = moments.randrange(2**32)
    moments.seed(seed)
    for kill in range(5):
        process = subprocess.Popen(
            command(killed), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        # From about one epoch, of which there are 16, to a sixth of the work: some of it is kept
        # at most kills, and the end is never reached.
        time.sleep(start + moments.uniform(work / 16, work / 6))
        assert process.poll() is None, f"ended before kill {kill}; seed of the moments: {seed}"
        process.kill()
        process.wait()
    saved = [run for run in find(killed) if run.status != "waiting"]
    final = subprocess.run(command(killed), capture_output=True, text=True, check=False)
    assert final.returncode == 0, (seed, final.stderr)
    assert numbers(killed) == numbers(undisturbed), f"seed of the moments: {seed}"
    assert saved, f"nothing was saved before the kills; seed of the moments: {seed}"
