"""The examples of the modules whose frameworks only this environment has."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["lightning", "optax", "transformers"])
def test_examples(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(f"znorm.integrations.{name}")
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0
