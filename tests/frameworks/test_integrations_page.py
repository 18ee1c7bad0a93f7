"""The table of docs/integrations.md: the versions that are tested, and pages that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from znorm.integrations.versions import TESTED

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
ROWS = re.findall(
    r"^\| \[([^\]]+)\]\(([^)#]+)[^)]*\) \| (.+) \| (.+) \|$",
    (ROOT / "docs" / "integrations.md").read_text(),
    re.MULTILINE,
)
PINS = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))


def test_versions_are_those_that_modules_warn_beyond() -> None:
    said = {
        found[1]: (found[2], found[3] or found[2])
        for *_, against in ROWS
        for found in re.finditer(r"([\w-]+) (\d+\.\d+)(?: to (\d+\.\d+))?", against)
    }
    for distribution, tested in TESTED.items():
        if distribution != "pytorch-lightning":
            assert said[distribution] == tested
    for distribution, (_, newest) in said.items():
        pin = PINS["pytorch-ignite" if distribution == "ignite" else distribution]
        assert pin.startswith(f"{newest}."), distribution


def test_each_row_is_a_page_that_shows_its_line() -> None:
    assert len(ROWS) == 12
    for _, page, line, _ in ROWS:
        text = (ROOT / "docs" / page).read_text()
        for word in re.findall(r"znorm\.attach|GradientTransform|adamw\(|z_score\(\)", line):
            assert word in text, (page, word)
