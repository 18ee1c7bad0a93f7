"""The Python of the pages on frameworks, where these are installed."""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path

import pytest

import page_code

pytestmark = pytest.mark.slow

PAGES = [
    page
    for page in sorted((page_code.ROOT / "docs" / "frameworks").glob("*.md"))
    if page_code.script(page)
]


def imported(code: str) -> set[str]:
    """The packages that a script imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    missing = sorted(n for n in imported(page_code.script(page)) if find_spec(n) is None)
    if missing:
        pytest.skip(f"{page.name}: not installed here: {', '.join(missing)}")
    page_code.run(page, tmp_path)
