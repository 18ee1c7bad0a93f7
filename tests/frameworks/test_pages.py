"""The blocks of each page of docs/frameworks run, in their order, as one script."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[2] / "docs" / "frameworks"
# nnU-Net is not installed: test_nnunet.py runs its page with a stand-in.
NEEDS = {
    "accelerate": ("accelerate",),
    "lightning": ("lightning",),
    "monai": ("monai", "ignite"),
    "optax": ("optax",),
    "transformers": ("transformers",),
    "wrappers": ("peft", "schedulefree"),
}


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def test_each_page_with_python_is_run() -> None:
    assert {page.stem for page in DOCS.glob("*.md") if blocks(page)} == {*NEEDS, "nnunet"}


@pytest.mark.parametrize("name", NEEDS)
def test_what_a_page_shows_runs(name: str, tmp_path: Path) -> None:
    for package in NEEDS[name]:
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    script = tmp_path / "page.py"
    script.write_text("\n".join(blocks(DOCS / f"{name}.md")))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
