"""The examples and the Python of README and of `docs` run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from znorm.transforms import TRANSFORMS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
# Pages that are run elsewhere: tests/test_guides.py, and tests/frameworks in their environment.
ELSEWHERE = {DOCS / "extend", DOCS / "frameworks"}
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def script(page: Path) -> str:
    """The blocks of a page in their order: what one defines the next may use."""
    return "\n".join(_BLOCK.findall(page.read_text()))


PAGES = [
    page
    for page in (ROOT / "README.md", *sorted(DOCS.rglob("*.md")))
    if not ELSEWHERE & set(page.parents) and script(page)
]


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.name)
def test_example(path: Path, tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, path], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_python_of_a_page(page: Path, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", script(page)], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


def test_each_transform_has_a_page_that_is_run() -> None:
    run = {page.stem.replace("-", "") for page in PAGES if page.parent.name == "transforms"}
    assert {name.lower() for name in TRANSFORMS} <= run
