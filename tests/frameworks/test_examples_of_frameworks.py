"""The examples of examples/frameworks run as they stand, where these are installed."""

from __future__ import annotations

from pathlib import Path

import pytest

import page_code

pytestmark = pytest.mark.slow

EXAMPLES = sorted((page_code.ROOT / "examples" / "frameworks").glob("*.py"))


def test_there_is_one_for_each() -> None:
    names = ["accelerate_loop", "hf_trainer", "lightning_callback", "optax_adam"]
    assert [path.stem for path in EXAMPLES] == names


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path: Path, tmp_path: Path) -> None:
    code = path.read_text()
    missing = page_code.missing(code)
    if missing:
        pytest.skip(f"{path.name}: not installed here: {', '.join(missing)}")
    assert page_code.run(code, tmp_path)
