"""Nets that are trained by torch.compile: as eager ones, and resumed to the same bits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from znorm import lab
from znorm.lab.errors import ConfigurationError
from znorm.lab.runs import runner

SMALL: dict[str, Any] = {
    "model": "resnet20",
    "methods": ["znorm"],
    "seeds": 1,
    "epochs": 2,
    "limit": 72,  # whose last batch is smaller
    "batch_size": 32,
    "precision": "float32",
    "device": "cpu",
    "compile": True,
}


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_in_another_process_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (whole,) = lab.compare(**SMALL, out=tmp_path / "whole")
    (eager,) = lab.compare(**{**SMALL, "compile": None}, out=tmp_path / "eager")
    assert whole.spec.hash != eager.spec.hash
    for one, other in zip(whole.history, eager.history, strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=0.05)
    asked = []

    def stop_requested(self: Any) -> bool:
        asked.append(1)
        return len(asked) == 2  # before the smaller batch, which the other process sees first

    monkeypatch.setattr(runner._Watch, "stop_requested", stop_requested)
    with pytest.raises(lab.Interrupted):
        lab.compare(**SMALL, out=tmp_path / "stopped")
    script = (
        "import json, sys\nfrom znorm import lab\n"
        "(run,) = lab.compare(**json.loads(sys.argv[1]), out=sys.argv[2])\n"
        "print(json.dumps(run.result['hashes']))"
    )
    command = [sys.executable, "-c", script, json.dumps(SMALL), str(tmp_path / "stopped")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert whole.result is not None
    assert json.loads(done.stdout.splitlines()[-1]) == whole.result["hashes"]


def test_where_it_does_not_work_it_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compile_(*args: Any, **options: Any) -> Any:
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", compile_)
    with pytest.raises(ConfigurationError, match=r"^compile: .* for cpu .* No working C\+\+ compi"):
        lab.compare(**SMALL, out=tmp_path / "runs")
    assert not list(tmp_path.rglob("spec.json"))
