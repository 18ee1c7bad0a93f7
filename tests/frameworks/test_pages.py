"""The Python of the pages on frameworks, where these are installed."""

from __future__ import annotations

from pathlib import Path

import pytest

import page_code

pytestmark = pytest.mark.slow

PAGES = [
    page
    for page in sorted((page_code.ROOT / "docs" / "frameworks").glob("*.md"))
    if page_code.script(page)
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    code = page_code.script(page)
    missing = page_code.missing(code)
    if missing:
        pytest.skip(f"{page.name}: not installed here: {', '.join(missing)}")
    page_code.run(code, tmp_path)
