"""What the page says of runs that were made long ago: writes the text of its tables as JSON.

    python tests/lab/old_pages.py > tests/lab/old_pages.json

A change that is not meant to change numbers leaves the file as it is.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from html.parser import HTMLParser
from pathlib import Path

RESULTS = Path(__file__).parents[2] / "docs" / "results"


class _Tables(HTMLParser):
    """The cells of each row of each table."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self._inside = False

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag == "table":
            self.tables.append([])
        elif tag == "tr" and self.tables:
            self.tables[-1].append([])
        elif tag in ("td", "th") and self.tables:
            self.tables[-1][-1].append("")
            self._inside = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.tables[-1][-1][-1] += " ".join(data.split())


def tables_of(folder: Path) -> list[list[str]]:
    """The tables of a folder's page, a row a line, as ``znorm report`` makes it now."""
    from znorm import lab

    with tempfile.TemporaryDirectory() as place:
        runs = Path(place) / folder.name
        shutil.copytree(folder, runs, ignore=shutil.ignore_patterns("*.html", "*.png"))
        parser = _Tables()
        parser.feed(Path(lab.report(runs)).read_text())
    return [[" | ".join(row) for row in table] for table in parser.tables]


def main() -> None:
    folders = sorted(path for path in RESULTS.iterdir() if path.is_dir())
    json.dump({folder.name: tables_of(folder) for folder in folders}, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
