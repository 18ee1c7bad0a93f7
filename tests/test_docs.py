"""The documents lead to each other, name all that is public, and their Python runs as it stands.

References between docstrings are seen by Sphinx alone, in `make docs`.
"""

from __future__ import annotations

import inspect
import re
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from public_names import modules, public_names

import page_code
from znorm.transforms import TRANSFORMS

ROOT = page_code.ROOT
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
# Those that pages of the site are.
ELSEWHERE = [
    *sorted(page for page in ROOT.glob("*.md") if page.name != "README.md"),
    ROOT / "benchmarks" / "README.md",
    ROOT / "src" / "znorm" / "lab" / "datasets" / "README.md",
]
# Run by test_guides.py in a copy of the source, and where the frameworks are installed.
OTHER_SCRIPTS = (DOCS / "extend", DOCS / "frameworks")
_CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
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


@pytest.mark.parametrize("page", [*PAGES, *ELSEWHERE], ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    text = _CODE.sub("", page.read_text())
    wrong = []
    for target, anchor in _LINK.findall(text):
        path = page.parent / target if target else page
        if not path.exists() or (anchor and path.suffix == ".md" and anchor not in anchors(path)):
            wrong.append(f"{target}#{anchor}")
    for address in re.findall(r"\]\((https?:[^)]*)\)", text):
        if not re.fullmatch(r"[\w-]+(\.[\w-]+)+", urlsplit(address).netloc) or " " in address:
            wrong.append(address)
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


SCRIPTS = [
    page
    for page in PAGES
    if page_code.script(page) and not any(page.is_relative_to(one) for one in OTHER_SCRIPTS)
]


# Each takes the seconds that torch takes to import: make docs and make test-all run the others.
FIRST = (ROOT / "README.md", DOCS / "start.md", DOCS / "training-scripts.md")


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=name(page), marks=() if page in FIRST else pytest.mark.slow)
        for page in SCRIPTS
    ],
)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    page_code.run(page_code.script(page), tmp_path)


def test_each_transform_has_a_page_that_is_run() -> None:
    run = {page.stem.replace("-", "") for page in SCRIPTS if page.parent.name == "transforms"}
    assert {one.lower() for one in TRANSFORMS} <= run


REFERENCE = "\n".join(page.read_text() for page in sorted((DOCS / "reference").glob("*.md")))


def in_reference(public: str) -> bool:
    """Whether a page asks Sphinx for the name, or for all names of its module."""
    module = public.rpartition(".")[0]
    wanted = (
        rf"\.\. auto\w+:: {re.escape(public)}$",
        rf"\.\. automodule:: {re.escape(module)}\n   :members:$",
    )
    return any(re.search(one, REFERENCE, re.MULTILINE) for one in wanted)


def described(docstring: str) -> set[str]:
    """The parameters that a docstring in numpydoc's form describes."""
    section = re.search(r"^Parameters\n-+\n(.*?)(?=^\w[^\n]*\n---|\Z)", docstring, re.M | re.S)
    heads = re.findall(r"^(\*{0,2}\w.*)$", section[1] if section else "", re.MULTILINE)
    return {one.strip().lstrip("*") for head in heads for one in head.split(" : ")[0].split(",")}


def faults(public: str, thing: Any) -> list[str]:
    if not in_reference(public):
        if re.search(rf"^\.\. data:: (\S+\.)?{public.rpartition('.')[2]}$", REFERENCE, re.M):
            return []  # a constant, with its text on the page
        return [f"{public}: on no page of docs/reference"]
    if not callable(thing):
        return []
    docstring = inspect.getdoc(thing) or ""
    if not docstring:
        return [f"{public}: no docstring"]
    made_by_others = "made by :func:" in docstring.partition("\n")[0]
    if made_by_others or (isinstance(thing, type) and issubclass(thing, BaseException)):
        return []
    given = described(docstring)
    wanted = [one for one in inspect.signature(thing).parameters if not one.startswith("_")]
    return [f"{public}: {one} is not described" for one in wanted if one not in given]


@pytest.mark.parametrize("module", modules())
def test_what_is_public_is_documented(module: str) -> None:
    try:
        found = list(public_names(module))
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("znorm"):
            raise
        pytest.skip(f"{module} needs {error.name}, which is not installed")
    assert found
    assert [fault for public, thing in found for fault in faults(public, thing)] == []
