"""The examples run as they stand, and the README's numbers are those of committed results."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.name)
def test_example(path: Path, tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, path], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout


def test_numbers_of_the_readme_are_those_of_the_committed_results() -> None:
    """Each row of the demo's table stands in the page beside its raw files."""
    page = (ROOT / "docs" / "results" / "demo" / "report.html").read_text()
    rows = re.findall(r"^\| ([^|]+) \| (\d\d\.\d\d ± \d+\.\d\d) \|", README, re.MULTILINE)
    assert len(rows) == 6
    for label, score in rows:
        assert re.search(rf"{re.escape(label)}.*?{re.escape(score)}", page, re.DOTALL), label


README = (ROOT / "README.md").read_text()
