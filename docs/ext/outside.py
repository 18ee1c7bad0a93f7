"""Links to what is no page of its own, and pages that are a file from elsewhere.

On the hosting site a page links to `../benchmarks/README.md` or `results/demo/`. Here

- a file that a page includes whole is that page;
- a folder is the page in it, or the report;
- what lies in `docs/results` keeps its place, since a report links to the files of its runs;
- every other file can be downloaded.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

_LINK = re.compile(
    r"(?<!!)\[([^\]\n]+(?:\n[^\]\n]+)?)\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?\)"
)
_CODE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
_INCLUDE = re.compile(r"^```\{include\} (\S+)\n```$", re.MULTILINE)
# What a reader of a folder would open.
_OF_A_FOLDER = ("README.md", "report.html")


def _included(page: Path) -> Path | None:
    """The file that a page is, if it is one."""
    found = _INCLUDE.search(page.read_text())
    return None if found is None else Path(os.path.normpath(page.parent / found[1]))


def _read(app: Any, name: str, source: list[str]) -> None:
    page, docs = Path(app.env.doc2path(name)), Path(app.srcdir)
    pages = {_included(one): one for one in docs.rglob("*.md")}
    folder = page.parent
    file = _included(page)
    if file is not None:
        app.env.note_dependency(str(file), docname=name)
        source[0], folder = file.read_text(), file.parent

    def replaced(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        path = Path(os.path.normpath(folder / target))
        if path.is_dir():
            inside = next((path / one for one in _OF_A_FOLDER if (path / one).is_file()), None)
            if inside is None:
                return text  # a folder of raw files
            path = inside
        if not path.exists():
            return match[0]  # Sphinx tells of it
        path = pages.get(path, path)
        relative = os.path.relpath(path, page.parent)
        if path.is_relative_to(docs) and path.suffix == ".md":
            return f"[{text}]({relative}{anchor})"
        if path.is_relative_to(docs / "results"):
            return f'<a href="{relative}{anchor}">{text}</a>'
        return f"{{download}}`{text.replace('`', '')} <{relative}>`"

    parts = _CODE.split(source[0])
    source[0] = "".join(
        part if position % 2 else _LINK.sub(replaced, part) for position, part in enumerate(parts)
    )


def _copy(app: Any, exception: Exception | None) -> None:
    results = Path(app.srcdir) / "results"
    if exception is None and app.builder.format == "html" and results.is_dir():
        raw = shutil.ignore_patterns("*.md")
        shutil.copytree(results, Path(app.outdir) / "results", ignore=raw, dirs_exist_ok=True)


def setup(app: Any) -> dict[str, Any]:
    app.connect("source-read", _read)
    app.connect("build-finished", _copy)
    return {"parallel_read_safe": True}
