"""The system's Chromium, driven by Playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def launched() -> Iterator[Any]:
    """A browser; without one the test is skipped."""
    api = pytest.importorskip("playwright.sync_api", reason="no playwright; make setup installs it")
    names = ("chromium", "chromium-browser", "google-chrome")
    place = next((found for name in names if (found := shutil.which(name))), None)
    if place is None:
        pytest.skip(f"none of {', '.join(names)} is on the PATH")
    with api.sync_playwright() as driver:
        one = driver.chromium.launch(executable_path=place, args=["--no-sandbox", "--disable-gpu"])
        yield one
        one.close()
