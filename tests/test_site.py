"""The site as Sphinx builds it: `make docs` has the environment that these tests need."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"

pytestmark = pytest.mark.slow


def build(docs: Path, out: Path) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("sphinx")
    command = "-m sphinx --nitpicky --fail-on-warning --keep-going --quiet --builder html"
    return subprocess.run(
        [sys.executable, *command.split(), docs, out],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )


def test_the_site_needs_no_outside_address(tmp_path: Path) -> None:
    done = build(DOCS, tmp_path)
    assert done.returncode == 0, done.stderr
    pages = [page for page in tmp_path.rglob("*.html") if "results" not in page.parts]
    assert len(pages) > 20
    for page in pages:
        text = page.read_text()
        assert re.findall(r"<(?:script|img|iframe)[^>]*src=\"(?:https?:)?//[^>]*>", text) == []
        assert re.findall(r"<link[^>]*href=\"(?:https?:)?//[^>]*>", text) == []
    for sheet in tmp_path.rglob("*.css"):
        assert re.findall(r"(?:url\(|@import)\s*[\"']?https?:", sheet.read_text()) == []


def test_faults_break_the_build(tmp_path: Path) -> None:
    """Each is planted in a copy of the documents, beside links to the rest of the repository."""
    for path in ROOT.iterdir():
        if path.name != "docs":
            (tmp_path / path.name).symlink_to(path)
    docs = tmp_path / "docs"
    shutil.copytree(DOCS, docs, ignore=shutil.ignore_patterns("results"))
    (docs / "results").symlink_to(DOCS / "results")
    for page, before, after in (
        ("start.md", "# Five minutes\n", "# Five minutes\n\n[a](no-page.md) [b](#no-anchor)\n"),
        ("for/researcher.md", "# For", "Formula $\\nosuch$\n\n# For"),
        ("reference/optim.md", ".. autoclass:: znorm.optim.SGD\n", ""),
        ("reference/attach.md", "# Attach", "{py:func}`znorm.no_name`\n\n# Attach"),
    ):
        text = (docs / page).read_text()
        assert before in text
        (docs / page).write_text(text.replace(before, after, 1))
    done = build(docs, tmp_path / "site")
    assert done.returncode == 1
    for told in (
        "target not found: 'no-page.md'",
        "no-anchor",
        r"Unknown LaTeX command \"\nosuch\"".replace('\\"', '"'),
        "znorm.optim.SGD is public, and no page of docs/reference has it",
        "znorm.no_name",
    ):
        assert told in done.stderr
