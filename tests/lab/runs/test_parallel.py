from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from znorm import lab
from znorm.lab.errors import ConfigurationError

GRID: dict[str, Any] = {
    "methods": ["baseline", "znorm"],
    "seeds": 2,
    "epochs": 3,
    "limit": 128,
    "precision": "float32",
    "device": "cpu",
}


@pytest.mark.slow
def test_runs_side_by_side_end_with_the_same_bits(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # which a CPU's last bits depend on
    try:
        alone = lab.compare(**GRID, out=tmp_path / "alone")
        together = lab.compare(**GRID, jobs=2, out=tmp_path / "together")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    for one, other in zip(alone, together, strict=True):
        assert one.status == other.status == "done"
        found = [json.loads((r.folder / "result.json").read_text()) for r in (one, other)]
        assert found[0]["hashes"] == found[1]["hashes"]
    assert (tmp_path / "together" / "report.html").exists()


def test_what_a_helper_left_is_done_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")  # a helper that ends at once
    runs = lab.compare(**{**GRID, "epochs": 1}, jobs=3, out=tmp_path)
    assert {run.status for run in runs} == {"done"}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "killpg"), reason="no signals to a group here")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_whoever_is_at_work_saves_and_stops(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C goes to all processes of a terminal; a kill to the one that started the others."""
    options = ["--methods", "baseline,znorm", "--seeds", "1", "--epochs", "200", "--jobs", "2"]
    command = [sys.executable, "-m", "znorm.lab", "compare", *options, "--out", str(tmp_path)]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        # An epoch is saved at its end.
        await_(lambda: len(list(tmp_path.glob("**/checkpoint.pt"))) == 2)
        before = {path: path.read_bytes() for path in tmp_path.glob("**/checkpoint.pt")}
        os.killpg(process.pid, number)
        assert process.wait(30) == (130 if number == signal.SIGINT else -signal.SIGKILL)
        await_(lambda: all(row["status"] == "interrupted" for row in lab.status(tmp_path)))
    finally:
        if process.poll() is None:
            process.kill()
    after = {path: path.read_bytes() for path in tmp_path.glob("**/checkpoint.pt")}
    changed = [path for path in after if after[path] != before[path]]
    # The helper has saved in either case, after its last step.
    assert changed


def await_(true: Callable[[], bool]) -> None:
    until = time.monotonic() + 90
    while not true():
        assert time.monotonic() < until
        time.sleep(0.2)


@pytest.mark.parametrize("jobs", [0, -1, True, "2", 1.5])
def test_a_number_of_jobs_that_is_none_is_named(tmp_path: Path, jobs: Any) -> None:
    with pytest.raises(
        ConfigurationError, match=f"jobs: expected a whole number from 1, found {jobs!r}"
    ):
        lab.compare(**GRID, jobs=jobs, out=tmp_path)
    assert not list(tmp_path.iterdir())
