"""Links to what lies outside of a page: files come along, and a folder's is to its own page.

On the hosting site a page links to `../benchmarks/README.md` or `results/demo/`; here such a file
is copied into the site.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

_LINK = re.compile(
    r"(?<!!)\[([^\]\n]+(?:\n[^\]\n]+)?)\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?\)"
)
_CODE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
# What a reader of a folder would open.
_OF_A_FOLDER = ("README.md", "report.html")


def _read(app: Any, name: str, source: list[str]) -> None:
    page = Path(app.env.doc2path(name))
    docs = Path(app.srcdir)

    def replaced(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        path = Path(os.path.normpath(page.parent / target))
        if path.is_dir():
            inside = next((path / one for one in _OF_A_FOLDER if (path / one).is_file()), None)
            if inside is None:
                return text  # a folder of raw files
            path = inside
        if not path.exists():
            return match[0]  # Sphinx tells of it
        relative = os.path.relpath(path, page.parent)
        if path.is_relative_to(docs):
            return f"[{text}]({relative}{anchor})"
        return f"{{download}}`{text.replace('`', '')} <{relative}>`"

    parts = _CODE.split(source[0])
    source[0] = "".join(
        part if position % 2 else _LINK.sub(replaced, part) for position, part in enumerate(parts)
    )


def setup(app: Any) -> dict[str, Any]:
    app.connect("source-read", _read)
    return {"parallel_read_safe": True}
