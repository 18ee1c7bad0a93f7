"""The lab from a folder on PYTHONPATH, where no package of that name is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import znorm

HIDDEN = """
from importlib import metadata
known = metadata.distribution
def distribution(name):
    if name == "znorm":
        raise metadata.PackageNotFoundError(name)
    return known(name)
metadata.distribution = distribution
"""


def test_a_comparison_ends_in_its_page(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(HIDDEN)
    source = Path(znorm.__file__).parents[1]
    options = ["--methods", "baseline", "--seeds", "1", "--epochs", "1", "--limit", "16"]
    done = subprocess.run(
        [sys.executable, "-m", "znorm.lab", "compare", *options, "--out", "runs"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{source}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"znorm {znorm.__version__}" in (tmp_path / "runs" / "report.html").read_text()
