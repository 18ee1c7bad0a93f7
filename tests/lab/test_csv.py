"""Tables that runs and predictions leave, opened in a spreadsheet and read again."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from znorm.lab import csvfiles
from znorm.lab.errors import DataError
from znorm.lab.metrics import Cases
from znorm.lab.runs.files import write_table
from znorm.lab.runs.folder import Run
from znorm.lab.spec import resolve

FORMULAS = [
    "=1+1",
    '=HYPERLINK("http://example.org","scan")',
    "+1",
    "-1",
    "-scan",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n=1",
    "'=1",
    "''-1",
]
PLAIN = ["scan_1", "a=b", "1", "'quoted'", "'", "a,b", 'a"b', "a\nb", "a\rb", "  a ", "ä", ""]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.at(tmp_path, resolve({"task": "phantom", "method": "znorm"}))


def cells(path: Path) -> list[list[str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize("text", FORMULAS)
def test_a_name_is_not_run_as_a_formula(tmp_path: Path, text: str) -> None:
    write_table(tmp_path / "a.csv", [{"name": text, "score": 0.5}])
    assert cells(tmp_path / "a.csv") == [["name", "score"], [f"'{text}", "0.5"]]


@pytest.mark.parametrize("text", PLAIN)
def test_other_names_are_left_as_they_are(tmp_path: Path, text: str) -> None:
    write_table(tmp_path / "a.csv", [{"name": text, "score": 0.5}])
    assert cells(tmp_path / "a.csv") == [["name", "score"], [text, "0.5"]]


def test_a_column_is_not_run_as_a_formula(tmp_path: Path) -> None:
    write_table(tmp_path / "a.csv", [{"name": "a", "=class": 0.5}])
    assert cells(tmp_path / "a.csv")[0] == ["name", "'=class"]
    assert csvfiles.load((tmp_path / "a.csv").read_bytes()) == [{"name": "a", "=class": "0.5"}]


def test_numbers_are_left_as_they_are(tmp_path: Path) -> None:
    rows = [{"a": -1, "b": -0.5, "c": -1e-300, "d": None, "e": True}]
    write_table(tmp_path / "a.csv", rows)
    assert (tmp_path / "a.csv").read_bytes() == b"a,b,c,d,e\n-1,-0.5,-1e-300,,True\n"


@pytest.mark.parametrize("together", [[text] for text in FORMULAS + PLAIN] + [FORMULAS + PLAIN])
def test_what_is_written_is_read_again(together: list[str]) -> None:
    rows = [{"name": text, "score": "0.5"} for text in together]
    assert csvfiles.load(csvfiles.dump(rows)) == rows


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("a\x1b[2Jb", r"a\x1b[2Jb"),
        ("\x00", r"\x00"),
        ("a\x7f\x9b", r"a\x7f\x9b"),
        ("=\x1b", r"'=\x1b"),
        ("\ud800", r"\ud800"),
        (r"a\x1b", r"a\x5cx1b"),
        (r"a\\x1b", r"a\\x5cx1b"),
        ("\\\x1b", "\\\\x1b"),
        (r"C:\scans\new", r"C:\scans\new"),
    ],
)
def test_a_name_that_a_terminal_would_obey_is_written_out(
    tmp_path: Path, text: str, cell: str
) -> None:
    rows = [{"name": text, text: "0.5"}]
    write_table(tmp_path / "a.csv", rows)
    assert cells(tmp_path / "a.csv") == [["name", cell], [cell, "0.5"]]
    assert csvfiles.load((tmp_path / "a.csv").read_bytes()) == rows


def test_cases_have_the_same_names_when_read_again(run: Run) -> None:
    names = [text for text in FORMULAS + PLAIN if text] + ["of \udcff bytes"]
    mask = torch.ones(len(names), 2, 2)
    written = Cases.of(mask, mask, names, [f"={name}" for name in names])
    run.save_cases(written)
    read = run.cases()
    assert read is not None
    assert (read.names, read.patients) == (written.names, written.patients)
    assert read.scores() == written.scores()


def test_cases_of_earlier_versions_are_read(run: Run) -> None:
    run.folder.mkdir(parents=True)
    mask = torch.ones(2, 2, 2)
    rows = Cases.of(mask, mask, ["=1", "-a"]).rows()
    with open(run.folder / "cases.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    read = run.cases()
    assert read is not None
    assert read.names == ("=1", "-a")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: text.rindex(",")], "line 2: expected 9 cells, found 8"),
        (lambda text: text.replace("a,", "a,b,", 1), "line 2: expected 9 cells, found 10"),
        (lambda text: text + '"' + "a" * 200_000, "field larger than field limit"),
        (lambda text: "", "there must be a row, found none"),
        (lambda text: "name\na\n", "row 0 must have tp"),
    ],
)
def test_cases_that_are_damaged_are_named_in_one_line(
    run: Run, change: Callable[[str], str], message: str
) -> None:
    mask = torch.ones(1, 2, 2)
    run.save_cases(Cases.of(mask, mask, ["a"]))
    path = run.folder / "cases.csv"
    path.write_text(change(path.read_text()))
    with pytest.raises(DataError, match=rf"{path}: cannot be read \(.*{message}") as caught:
        run.cases()
    assert "\n" not in str(caught.value)
