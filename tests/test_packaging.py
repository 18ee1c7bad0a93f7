"""The wheel and the sdist: built, installed in a clean environment, and used there."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.slow


def sh(*command: str | Path, cwd: Path | None = None) -> str:
    # What this environment exports about itself must not reach the clean one.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    out = tmp_path_factory.mktemp("dist")
    sh(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT)
    (wheel,) = out.glob("*.whl")
    (sdist,) = out.glob("*.tar.gz")
    return wheel, sdist


def test_what_the_distributions_hold(distributions: tuple[Path, Path]) -> None:
    wheel, sdist = distributions
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "znorm/py.typed",
        "znorm/lab/datasets/pcam_mini.npz",
        "znorm/lab/datasets/README.md",
        "znorm/lab/reporting/page.html.j2",
        "znorm/lab/reporting/macros.html.j2",
        "znorm/lab/paper/tables.html.j2",
        "znorm/lab/runs/folder.py",
    } <= names
    assert not [name for name in names if name.startswith("tests")]
    with tarfile.open(sdist) as archive:
        members = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "LICENSE", "tests/test_packaging.py", "constraints.txt"} <= members


def test_the_wheel_works_in_a_clean_environment(
    distributions: tuple[Path, Path], tmp_path: Path
) -> None:
    """torch alone is installed beside it: the core must not need more."""
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    wheel = distributions[0]
    sh(python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel)
    code = (
        "import torch, znorm; g = torch.tensor([1.0, 2.0, 3.0]); znorm.z_score_([g]);"
        "print(znorm.__file__, [round(v, 4) for v in g.tolist()])"
    )
    out = sh(python, "-W", "ignore", "-c", code, cwd=tmp_path)
    assert str(tmp_path) in out
    assert "[-1.2247, 0.0, 1.2247]" in out
    result = subprocess.run(
        [tmp_path / "env" / "bin" / "znorm"], capture_output=True, text=True, cwd=tmp_path
    )
    assert result.returncode == 2
    # torch itself warns on stderr where numpy is missing.
    assert result.stderr.splitlines()[-1] == (
        "znorm: the command line needs click; pip install 'znorm[lab]'"
    )
