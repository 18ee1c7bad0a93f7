"""The documents lead to each other, and their Python runs as it stands.

What needs Sphinx is seen by `make docs`: references, and the public names that no page has.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
# Run elsewhere: by test_guides.py in a copy of the source, and where the frameworks are installed.
ELSEWHERE = (DOCS / "extend", DOCS / "frameworks")
_CODE = re.compile(r"^(?:```|:::).*?^(?:```|:::)$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]*))?\)")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@cache
def anchors(page: Path) -> set[str]:
    """The anchors of its headings, as the hosting site and Sphinx make them."""
    text = _CODE.sub("", page.read_text())
    found: set[str] = set()
    for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).strip().lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        number = 0
        while (slug if not number else f"{slug}-{number}") in found:
            number += 1
        found.add(slug if not number else f"{slug}-{number}")
    return found


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    wrong = []
    for target, anchor in _LINK.findall(_CODE.sub("", page.read_text())):
        path = page.parent / target if target else page
        if not path.exists() or (anchor and path.suffix == ".md" and anchor not in anchors(path)):
            wrong.append(f"{target}#{anchor}")
    assert wrong == []


def test_each_page_is_in_a_table_of_contents() -> None:
    listed: set[Path] = set()
    for page in PAGES[1:]:
        for entries in re.findall(r"^```\{toctree\}\n(.*?)^```$", page.read_text(), re.M | re.S):
            for entry in entries.splitlines():
                if entry and not entry.startswith(":"):
                    found = list(page.parent.glob(f"{entry}.md"))
                    assert found, f"{name(page)}: {entry}"
                    listed.update(path.resolve() for path in found)
    assert [name(page) for page in PAGES[1:] if page.resolve() not in listed] == ["docs/index.md"]


def scripts() -> list[Path]:
    """The pages that have Python to run."""
    return [
        page
        for page in PAGES
        if not any(page.is_relative_to(folder) for folder in ELSEWHERE)
        and re.search(r"^```python$", page.read_text(), re.MULTILINE)
    ]


@pytest.mark.parametrize("page", scripts(), ids=name)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    """All of its blocks in their order, as one script."""
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    result = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:znorm", "-c", "\n".join(blocks)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
