"""Numbers and figures of README and of `docs` are those of the raw files beside them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
README = (ROOT / "README.md").read_text()
LIMITS = (ROOT / "docs" / "limits.md").read_text()
TRANSFORMS = sorted((ROOT / "docs" / "transforms").glob("*.md"))

SETS = {
    "ResNet-50, 25.6 M": "resnet50",
    "ResNet-56, 0.85 M": "resnet56",
    "transformer, 101 M": "transformer",
}
ARMS = {
    "`znorm.optim.Adam`": "ours",
    "`znorm.attach`": "attach",
    "`attach`": "attach",
    "`attach`, reference kernels": "reference",
    "the formula in a loop": "naive",
    "`clip_grad_norm_`": "clipping",
}
MEANS = {
    "0": 0.0,
    "1 deviation": 1.0,
    "100 deviations": 1e2,
    "10,000 deviations": 1e4,
    "1,000,000 deviations": 1e6,
}


def read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


def rows_of(page: str, title: str) -> list[dict[str, str]]:
    """The rows of the tables whose first title is that, each by the titles of its columns."""
    rows: list[dict[str, str]] = []
    titles: list[str] = []
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line[:1] == "|" else []
        if not cells:
            titles = []
        elif cells[0] == title:
            titles = cells
        elif titles and not cells[0].startswith("---"):
            rows.append(dict(zip(titles, cells, strict=True)))
    return rows


def test_readme_is_short() -> None:
    assert len(README.split()) <= 800


def test_numbers_of_the_demo_are_those_of_the_committed_results() -> None:
    """Each row of the demo's table stands in the page beside its raw files."""
    page = (ROOT / "docs" / "results" / "demo" / "report.html").read_text()
    shown = (ROOT / "docs" / "experiments.md").read_text()
    rows = re.findall(r"^\| ([^|]+) \| (\d\d\.\d\d ± \d+\.\d\d) \|", shown, re.MULTILINE)
    assert len(rows) == 6
    for label, score in rows:
        assert re.search(rf"{re.escape(label)}.*?{re.escape(score)}", page, re.DOTALL), label


@pytest.mark.parametrize(("page", "count"), [(README, 4), (LIMITS, 12)], ids=["README", "limits"])
def test_speeds_are_those_of_the_raw_files(page: str, count: int) -> None:
    ratios: dict[tuple[str, ...], str] = {}
    for device in ("cpu", "cpu-transformer", "cpu-reference", "gpu"):
        for table in read(f"step-{device}")["tables"]:
            for row in table["rows"]:
                key = (device[:3], table["set"], table["dtype"], row["arm"])
                text = f"{row['ratio']:.2f}"
                ratios[key] = f"{ratios[key]}, {text}" if key in ratios else text
    rows = rows_of(page, "parameters")
    assert len(rows) == count
    for row in rows:
        # One thread and two on a CPU; a GPU has one number.
        device = "cpu" if "," in row["`znorm.optim.Adam`"] else "gpu"
        for title, found in row.items():
            if title in ARMS:
                key = (device, SETS[row["parameters"]], row["dtype"], ARMS[title])
                assert found == ratios[key], (row["parameters"], row["dtype"], title)


def test_speeds_on_shards_are_those_of_the_raw_file() -> None:
    arms = {
        "`znorm.optim.Adam`": "znorm.optim.Adam, ZNorm",
        "`attach`": "attach ZNorm to Adam(fused=True)",
        "`clip_grad_norm_`": "clip_grad_norm_, Adam(fused=True)",
        "the formula on DTensors": "the formula on DTensors, Adam(fused=True)",
    }
    ratios = {
        (table["set"], row["arm"]): f"{row['ratio']:.2f}"
        for table in read("sharded-cpu")["tables"]
        for row in table["rows"]
    }
    rows = rows_of((ROOT / "docs" / "guide" / "sharding.md").read_text(), "sharded")
    assert len(rows) == 3
    for row in rows:
        for title, arm in arms.items():
            assert row[title] == ratios[SETS[row["sharded"]], arm], (row["sharded"], title)


def test_ratios_of_compiled_nets_are_those_of_the_raw_file() -> None:
    found = read("compiled-cpu")["compiled"]
    rows = rows_of((ROOT / "docs" / "experiments.md").read_text(), "model")
    rows = [row for row in rows if "seconds to compile" in row]
    assert [row["model"] for row in rows] == list(found)
    for row in rows:
        one = found[row["model"]]
        assert row["precision"] == one["precision"]
        assert row["ratio"] == f"{one['rows'][1]['ratio']:.2f}"
        assert row["seconds to compile"] == f"{one['seconds_to_compile']:.0f}"


def numbers_in(content: Any) -> set[str]:
    """All ratios of a raw file, as pages round them."""
    if isinstance(content, dict):
        own = {f"{content['ratio']:.2f}"} if "ratio" in content else set()
        return own.union(*map(numbers_in, content.values()))
    return set().union(*map(numbers_in, content)) if isinstance(content, list) else set()


@pytest.mark.parametrize("page", TRANSFORMS, ids=lambda page: page.stem)
def test_costs_of_a_transform_stand_in_the_raw_files_that_its_page_names(page: Path) -> None:
    for cost in re.findall(r"^\*\*Cost\.\*\*.*?(?=\n\n|\Z)", page.read_text(), re.M | re.S):
        files = re.findall(r"`benchmarks/results/([\w-]+)\.json`", cost)
        known = set().union(*(numbers_in(read(file)) for file in files))
        found = set(re.findall(r"(?<![\d.])(?<!torch )\d\.\d\d\b", cost))
        assert found <= known, found - known


@pytest.mark.parametrize(("page", "count"), [(README, 6), (LIMITS, 11)], ids=["README", "limits"])
def test_errors_are_those_of_the_raw_file(page: str, count: int) -> None:
    tables = {
        (table["dtype"], table["mean_over_deviation"]): {row["arm"]: row for row in table["rows"]}
        for table in read("exactness")["tables"]
    }
    lines = [line for line in page.splitlines() if re.match(r"\| \w+\d\d, \d", line)]
    assert len(lines) == count
    for line in lines:
        what, *numbers = [cell.strip() for cell in line.strip("|").split("|")]
        dtype, _, mean = what.partition(", ")
        arms = [tables[dtype, MEANS[mean]][arm] for arm in ("znorm", "the formula")]
        assert numbers == [
            *(f"{arm['largest_error']:.1e}" for arm in arms),
            *(f"{arm['equal_share']:.1%}".replace("%", " %") for arm in arms),
        ], what


def test_constant_gradients_are_as_the_pages_say() -> None:
    constants = {
        (row["dtype"], row["arm"]): row["largest_entry"] for row in read("exactness")["constants"]
    }
    assert constants["float32", "znorm"] == constants["float16", "znorm"] == 0
    assert round(constants["float32", "the formula"], 2) == 0.99
    assert constants["float16", "the formula"] is None


def test_the_memory_that_steps_in_backward_save_is_that_of_the_raw_file() -> None:
    found = read("memory-cpu")
    page = (ROOT / "docs" / "guide" / "in-backward.md").read_text().replace("\n", " ")
    small, large = (
        sorted(found["peak_bytes"][way])[2] / 1e6 for way in ("in_backward", "ordinary")
    )
    words = (
        f"{small:.1f} MB in place of {large:.1f}, lower by "
        f"{found['saved_share_of_gradients']:.0%}".replace("%", " %")
        + f" of the gradients' {found['gradient_bytes'] / 1e6:.1f} MB"
    )
    assert words in page


@pytest.mark.slow
def test_the_figure_of_steps_under_adam_is_what_its_script_draws(tmp_path: Path) -> None:
    figures = ROOT / "docs" / "figures"
    file = tmp_path / "again.svg"
    command = [sys.executable, figures / "under_adam.py", file]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert file.read_text() == (figures / "under-adam.svg").read_text()
    # What the page says of it.
    page = (figures.parent / "guide" / "under-adam.md").read_text().replace("\n", " ")
    ends = [float(end) for end in re.findall(r": ([\d.]+) times as long at the end", done.stdout)]
    assert [f"{end:.2g}" for end in ends] == ["1", "3.3", "21", "1.6e+02"]
    assert min(map(float, re.findall(r"cosine ([\d.]+)", done.stdout))) > 0.998
    assert "1.00 times as long for a constant scale, 3.3 times after a 10-fold decay, 21" in page
