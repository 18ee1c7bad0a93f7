"""No step copies between the host and a GPU, shown without one: by fake tensors on a fake device.

Such a copy waits for the device, and cannot be captured in a CUDA graph.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration


@pytest.mark.parametrize(("kernels", "steps"), [("reference", 22), ("triton", 38)])
def test_a_step_on_a_gpu_touches_nothing_on_the_host(kernels: str, steps: int) -> None:
    if kernels == "triton":
        pytest.importorskip("triton")
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch has no devices made in Python")
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("fake_gpu.py")), kernels],
        env={**os.environ, "ZNORM_KERNELS": "reference" if kernels == "reference" else ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert len(found) == steps
    assert {name: seen for name, seen in found.items() if seen} == {}
