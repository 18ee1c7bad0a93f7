"""Workflows, forms, Makefile, pyproject and changelog agree with each other."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from packaging.specifiers import SpecifierSet
from packaging.version import Version

import znorm

# It comes with the lab, which the tests on the oldest torch do without.
yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parent.parent
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
FORMS = sorted(p for p in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if p.stem != "config")
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), *GITHUB.glob("*.md")]
MAKEFILE = (ROOT / "Makefile").read_text()
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OLDEST_TORCH = "2.6.0"


def read(path: Path) -> dict[Any, Any]:
    content = yaml.safe_load(path.read_text())
    assert isinstance(content, dict), path
    return content


def texts(content: Any) -> Iterator[str]:
    """Every text in a YAML file."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict):
        for value in content.values():
            yield from texts(value)
    elif isinstance(content, list):
        for value in content:
            yield from texts(value)


def targets() -> set[str]:
    """What the Makefile can make, but for files."""
    return {
        name
        for names in re.findall(r"^([a-z][a-z -]*):(?![=])", MAKEFILE, re.MULTILINE)
        for name in names.split()
    }


def asked_of_make(path: Path) -> set[str]:
    """The targets that a file names: as commands in a workflow, in code or on a line elsewhere."""
    if path in WORKFLOWS:
        runs = [s.get("run", "") for job in read(path)["jobs"].values() for s in job["steps"]]
        found = re.findall(r"^make ([a-z-]+)", "\n".join(runs), re.MULTILINE)
    elif path.suffix == ".md":
        code = r"(?:`|^)make ([a-z-]+)(?=[` ;]|$)"
        found = re.findall(code, path.read_text(), re.MULTILINE)
    else:
        found = re.findall(r"\bmake ([a-z-]+)\b", "\n".join(texts(read(path))))
    return set(found)


def steps(workflow: Path) -> list[dict[str, Any]]:
    return [step for job in read(workflow)["jobs"].values() for step in job["steps"]]


def test_there_are_workflows_and_forms() -> None:
    assert {path.stem for path in WORKFLOWS} == {"tests", "test-all", "release"}
    assert len(FORMS) == 4


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_a_workflow_asks_for_little_and_says_which_actions(path: Path) -> None:
    workflow = read(path)
    # YAML 1.1, which GitHub does not read, takes a bare `on` for true.
    assert workflow.get("on", workflow.get(True))
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]["cancel-in-progress"] is (path.stem != "release")
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 360
    for step in steps(path):
        assert ("uses" in step) != ("run" in step)
        if "uses" in step:
            assert re.fullmatch(r"[\w.-]+/[\w.-]+@(v\d+|release/v\d+)", step["uses"])


def test_publishing_alone_may_show_who_it_is_and_no_secret_is_used() -> None:
    for path in WORKFLOWS:
        assert "secrets." not in path.read_text()
        for name, job in read(path)["jobs"].items():
            more = {"id-token": "write"} if (path.stem, name) == ("release", "publish") else None
            assert job.get("permissions") == more


@pytest.mark.parametrize("path", FORMS, ids=lambda p: p.stem)
def test_a_form_has_what_the_hosting_site_asks_for(path: Path) -> None:
    form = read(path)
    assert {"name", "description", "body"} <= set(form)
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    names = [field["id"] for field in fields]
    labels = [field["attributes"]["label"] for field in fields]
    assert len(set(names)) == len(names)
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize("path", [*WORKFLOWS, *FORMS, *PAGES], ids=lambda p: p.name)
def test_make_can_make_what_is_named(path: Path) -> None:
    assert asked_of_make(path) <= targets()


def test_the_search_for_targets_finds_some() -> None:
    assert {"setup", "test", "wheel"} <= targets()
    assert asked_of_make(GITHUB / "workflows" / "tests.yml") == {
        *("setup", "lint", "test", "docs", "floor", "wheel")
    }
    assert asked_of_make(GITHUB / "workflows" / "test-all.yml") == {"test-all"}
    assert {"lint", "test", "floor"} <= asked_of_make(ROOT / "CONTRIBUTING.md")
    assert "setup" in asked_of_make(GITHUB / "ISSUE_TEMPLATE" / "slower.yml")


def test_targets_are_phony_and_the_help_names_no_other() -> None:
    (phony,) = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert set(phony.split()) == targets()
    helped = set(re.findall(r'@echo "make ([a-z-]+) ', MAKEFILE))
    assert helped <= targets()
    assert targets() - helped == {"help", "setup", "format", "clean"}


def test_python_versions_are_those_of_the_classifiers() -> None:
    matrix = read(GITHUB / "workflows" / "tests.yml")["jobs"]["test"]["strategy"]["matrix"]
    pattern = r"Programming Language :: Python :: (3\.\d+)"
    stated = [m[1] for c in PROJECT["classifiers"] if (m := re.fullmatch(pattern, c))]
    assert matrix["python"] == stated
    assert PROJECT["requires-python"] == f">={stated[0]}"
    for path in WORKFLOWS:
        for step in steps(path):
            if "actions/setup-python" in step.get("uses", ""):
                given = step["with"]["python-version"]
                # A number would make 3.1 of 3.10.
                assert isinstance(given, str)
                assert given in (*stated, "${{ matrix.python }}")


def test_the_oldest_torch_is_the_one_that_is_tested() -> None:
    (wanted,) = PROJECT["dependencies"]
    assert wanted == "torch>=" + OLDEST_TORCH.removesuffix(".0")
    assert re.findall(r"torch==([\d.]+)", MAKEFILE) == [OLDEST_TORCH]
    floor = read(GITHUB / "workflows" / "tests.yml")["jobs"]["floor"]
    assert floor["name"].endswith(f"torch, {OLDEST_TORCH}")
    assert floor["steps"][-1]["run"] == "make floor"


def test_the_pin_of_torch_takes_the_cpu_build_that_workflows_offer() -> None:
    pins = (ROOT / "constraints.txt").read_text()
    (pin,) = re.findall(r"^torch==(.*)$", pins, re.MULTILINE)
    assert Version(f"{pin}+cpu") in SpecifierSet(f"=={pin}")
    assert Version(f"{pin}+cpu") > Version(pin)
    for path in WORKFLOWS:
        assert read(path)["env"] == {"PIP_EXTRA_INDEX_URL": "https://download.pytorch.org/whl/cpu"}


def test_hooks_use_the_tools_of_the_checkout() -> None:
    repos = read(ROOT / ".pre-commit-config.yaml")["repos"]
    (local,) = (repo for repo in repos if repo["repo"] == "local")
    assert [hook["entry"].split()[0] for hook in local["hooks"]] == [
        ".venv/bin/ruff",
        ".venv/bin/ruff",
        ".venv/bin/mypy",
        ".venv/bin/mypy",
    ]


CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
KINDS = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")


def test_the_changelog_begins_with_what_is_unreleased_and_goes_back_in_time() -> None:
    first, *released = re.findall(r"^## (.*)$", CHANGELOG, re.MULTILINE)
    assert first == "[Unreleased]"
    matches = [re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)", one) for one in released]
    assert None not in matches, released
    versions = [Version(m[1]) for m in matches if m]
    dates = [m[2] for m in matches if m]
    assert all(newer > older for newer, older in pairwise(versions))
    assert dates == sorted(dates, reverse=True)
    if versions:
        assert versions[0] <= Version(znorm.__version__)


def test_sections_of_the_changelog_are_of_the_six_kinds_in_their_order() -> None:
    for part in re.split(r"^## ", CHANGELOG, flags=re.MULTILINE)[1:]:
        kinds = re.findall(r"^### (.*)$", part, re.MULTILINE)
        assert kinds == [kind for kind in KINDS if kind in kinds]


def test_the_citation_is_of_this_version() -> None:
    assert read(ROOT / "CITATION.cff")["version"] == znorm.__version__


def test_the_sdist_has_the_files_that_its_tests_read() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    included = pyproject["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    for name in included:
        assert (ROOT / name.lstrip("/")).exists(), name
    for path in (*ROOT.glob("*.md"), GITHUB, ROOT / ".pre-commit-config.yaml"):
        # hatchling takes the readme of itself.
        assert path.name == "README.md" or f"/{path.name}" in included
