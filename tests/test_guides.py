"""The guides of docs/extend: their examples run, and the files that they name are there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GUIDES = sorted((ROOT / "docs" / "extend").glob("*.md"))
MOST_LINES = 120  # a screen or two


def examples(guide: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", guide.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_the_examples_of_a_guide_run(guide: Path, tmp_path: Path) -> None:
    """In order, in one namespace, in a process of their own: they add to what there is."""
    blocks = examples(guide)
    assert blocks
    script = tmp_path / "example.py"
    script.write_text("\n".join(blocks))
    done = subprocess.run(
        [sys.executable, script.name], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_a_guide_is_short_and_names_files_that_are_there(guide: Path) -> None:
    text = guide.read_text()
    assert len(text.splitlines()) <= MOST_LINES
    named = re.findall(r"`((?:src|tests|docs|benchmarks)/[\w./]*)`", text)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
