"""Results to the bit: what kernels gave before a change, they give after it.

`tests/bits/record.py` has written the files that this compares with, and says when to write them
anew.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent / "bits"
KERNELS = {
    "cpu": {},
    "reference": {"ZNORM_KERNELS": "reference"},
    "triton": {"ZNORM_KERNELS": "triton", "TRITON_INTERPRET": "1"},
}
# On another processor sums are in another order, and half precision rounds another way at times.
TOLERANCE = {"float32": 1e-4, "float64": 1e-9, "bfloat16": 0.05}


@pytest.mark.parametrize(
    "kernels",
    ["cpu", *(pytest.param(one, marks=pytest.mark.slow) for one in ("reference", "triton"))],
)
def test_kernels_give_the_bits_that_they_gave(kernels: str) -> None:
    pytest.importorskip("triton" if kernels == "triton" else "numba")
    kept = {name: value for name, value in os.environ.items() if name != "ZNORM_KERNELS"}
    found = json.loads(
        subprocess.run(
            [sys.executable, "-W", "ignore", str(HERE / "record.py")],
            env=kept | KERNELS[kernels],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )
    recorded = json.loads((HERE / f"{kernels}.json").read_text())
    assert found["cases"].keys() == recorded["cases"].keys()
    same_machine = found["made on"] == recorded["made on"]
    wrong = [
        name
        for name, case in recorded["cases"].items()
        if not (
            found["cases"][name] == case
            if same_machine
            else _close(name, found["cases"][name], case)
        )
    ]
    assert not wrong


def _close(name: str, found: dict[str, Any], recorded: dict[str, Any]) -> bool:
    tolerance = TOLERANCE.get(name.rpartition(" ")[2], 1e-4)
    return all(
        abs(found[what][number] - before[number]) <= tolerance * max(1.0, before["norm"])
        for what, before in recorded.items()
        for number in ("sum", "norm")
    )
