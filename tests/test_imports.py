"""The library stands alone: it needs torch, imports nothing of the lab, and is quick to import."""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import znorm

PACKAGE = Path(znorm.__file__).parent


def run(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return result.stdout


def test_import_znorm_imports_nothing_of_the_lab() -> None:
    loaded = run("import sys, znorm; print(*sys.modules)").split()
    assert not [name for name in loaded if name.startswith("znorm.lab")]
    for name in ("numba", "scipy", "sklearn", "matplotlib", "pydantic", "click", "rich"):
        assert name not in loaded


def test_no_core_file_or_core_test_imports_the_lab() -> None:
    files = [*PACKAGE.rglob("*.py"), *Path(__file__).parent.rglob("*.py")]
    for file in files:
        if "lab" in file.parts:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            assert not [name for name in names if name.startswith("znorm.lab")], file


@pytest.mark.alone
def test_import_takes_no_longer_than_torch_plus_a_tenth_of_a_second() -> None:
    code = (
        "import time; a = time.perf_counter(); import torch; b = time.perf_counter();"
        "import znorm; print(time.perf_counter() - b)"
    )
    run(code)
    extra = statistics.median(float(run(code)) for _ in range(3))
    assert extra < 0.1, f"{extra:.3f} s beyond import torch"


def test_every_public_name_has_a_docstring() -> None:
    for name in znorm.__all__:
        if name not in ("__version__",):
            assert getattr(znorm, name).__doc__, name


def test_docstrings_say_what_a_thing_is_or_does() -> None:
    """None opens with a question's word, which leaves a reader to find out what is answered."""
    questions = ("What", "Whether", "Where", "How", "Which", "Why", "Who", "Of")
    found = []
    for file in PACKAGE.rglob("*.py"):
        tree = ast.parse(file.read_text())
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        for node in ast.walk(tree):
            text = (ast.get_docstring(node) or "") if isinstance(node, kinds) else ""
            if text.split(" ")[0] in questions:
                name = getattr(node, "name", "the module")
                found.append(f"{file.relative_to(PACKAGE)}: {name}: {text.splitlines()[0]}")
    assert found == []
