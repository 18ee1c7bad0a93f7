"""The site as Sphinx builds it: `make docs` has the environment that these tests need."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

import chromium

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


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    done = build(DOCS, out)
    assert done.returncode == 0, done.stderr
    return out


def pages(site: Path) -> list[Path]:
    """Those that Sphinx made: reports of runs have tests of their own."""
    made = [page for page in site.rglob("*.html") if "results" not in page.parts]
    return sorted([*made, site / "results" / "README.html"])


def test_the_site_needs_no_outside_address(site: Path) -> None:
    assert len(pages(site)) > 20
    for page in pages(site):
        text = page.read_text()
        assert re.findall(r"<(?:script|img|iframe)[^>]*src=\"(?:https?:)?//[^>]*>", text) == []
        assert re.findall(r"<link[^>]*href=\"(?:https?:)?//[^>]*>", text) == []
    for sheet in site.rglob("*.css"):
        assert re.findall(r"(?:url\(|@import)\s*[\"']?https?:", sheet.read_text()) == []


def test_links_between_files_lead_somewhere(site: Path) -> None:
    """Those to raw files and folders, too, which Sphinx does not look at."""
    wrong = []
    for page in pages(site):
        for link in re.findall(r"<a[^>]* href=\"([^\"#?:]+)[^\":]*\"", page.read_text()):
            if not (page.parent / unquote(link)).is_file():
                wrong.append(f"{page.relative_to(site)}: {link}")
    assert wrong == []


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1400, "light")])
def test_everybody_can_read_it(site: Path, width: int, scheme: Any) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe-playwright")
    wrong: list[Any] = []
    with chromium.launched() as browser:
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.on("pageerror", lambda error: wrong.append(error))
        for file in pages(site):
            page.goto(file.as_uri())
            name = str(file.relative_to(site))
            if page.evaluate("document.documentElement.scrollWidth") > width:
                wrong.append(f"{name}: wider than the screen")
            found = axe.Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa"]})
            wrong += [(name, one["id"]) for one in found.response["violations"]]
    assert wrong == []


def test_the_search_works_from_a_folder(site: Path) -> None:
    with chromium.launched() as browser:
        page = browser.new_page()
        page.goto((site / "index.html").as_uri())
        page.get_by_placeholder("Search").first.fill("attachment_of")
        page.keyboard.press("Enter")
        found = page.locator("#search-results a").first
        found.wait_for()
        assert found.inner_text() == "znorm.attachment_of"
        found.click()
        page.locator("#znorm\\.attachment_of").wait_for()


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
