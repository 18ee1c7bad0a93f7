"""Runs that were made long ago are still reported, with the numbers that they had.

`old_pages.py` has written what is compared with, and says when to write it anew.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def test_pages_of_old_runs_show_the_numbers_that_they_showed() -> None:
    command = [sys.executable, str(HERE / "old_pages.py")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    pages, recorded = json.loads(printed), json.loads((HERE / "old_pages.json").read_text())
    assert pages.keys() == recorded.keys()
    for folder, tables in pages.items():
        assert tables == recorded[folder], folder
