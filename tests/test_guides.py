"""The pages of `docs/extend`: what they add is put into a copy of the source, and run.

A block of Python that begins with a comment of one of these forms is put where it says; all others
of a page are executed in their order, as one script.

    # new file: PATH
    # in PATH, before: LINE
    # in PATH, after: LINE
    # in PATH, in place of: LINE
    # at the end of PATH

LINE is the beginning of a line, which no other one of that file has.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs" / "extend").glob("*.md"))
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PLACE = re.compile(
    r"# (?:new file: (?P<new>\S+)|at the end of (?P<end>\S+)"
    r"|in (?P<file>\S+), (?P<how>[a-z ]+): (?P<line>.*))"
)


def put(root: Path, head: re.Match[str], text: str) -> None:
    """Put a block of a page where its first line says."""
    path = root / (head["new"] or head["end"] or head["file"])
    if head["new"]:
        assert not path.exists(), f"{path} is there already"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return
    lines = path.read_text().splitlines(keepends=True)
    if head["end"]:
        path.write_text("".join([*lines, text]))
        return
    places = [number for number, line in enumerate(lines) if line.startswith(head["line"])]
    assert len(places) == 1, f"{head['file']}: {len(places)} lines begin with {head['line']!r}"
    (at,) = places
    ends = {"before": (at, at), "after": (at + 1, at + 1), "in place of": (at, at + 1)}
    first, last = ends[head["how"]]
    lines[first:last] = [text]
    path.write_text("".join(lines))


def run(page: Path, root: Path, **environment: str) -> None:
    """Follow a page in a copy of the source."""
    shutil.copytree(ROOT / "src", root / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shown: list[str] = []
    for block in _BLOCK.findall(page.read_text()):
        first, _, rest = block.partition("\n")
        head = _PLACE.fullmatch(first)
        if head is None:
            shown.append(block)
        else:
            put(root, head, rest)
    script = root / "shown.py"
    script.write_text("\n".join(shown))
    path = os.pathsep.join([str(root / "src"), str(root)])
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:znorm", str(script)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_what_a_page_shows_runs(page: Path, tmp_path: Path) -> None:
    run(page, tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_what_a_page_names_is_there(page: Path) -> None:
    text = page.read_text()
    new = re.findall(r"^# new file: (\S+)$", text, re.MULTILINE)
    named = set(re.findall(r"`((?:src|tests|docs|benchmarks)/[\w./]*)`", text))
    assert [name for name in named if name not in new and not (ROOT / name).exists()] == []
    links = re.findall(r"\]\((?!http)([^)#]+)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.slow
def test_a_new_update_rule_steps_on_a_gpu_too(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    page = ROOT / "docs" / "extend" / "update_rule.md"
    run(page, tmp_path, TRITON_INTERPRET="1", ZNORM_KERNELS="triton")
