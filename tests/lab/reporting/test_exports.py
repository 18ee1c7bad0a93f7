"""Tables to take away: what each letter becomes, and numbers of runs to the last digit."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest

from lab.kit import finished, recorded
from znorm.lab.errors import DataError
from znorm.lab.reporting.evidence import evidence
from znorm.lab.reporting.exports import Export, exports, latex, markdown
from znorm.lab.reporting.page import write_page
from znorm.lab.reporting.tables import gather
from znorm.lab.runs.folder import Run

LETTERS = {
    "a_b": (r"a\_b", r"a\_b"),
    "50 %": (r"50 \%", "50 %"),
    "R&D": (r"R\&D", "R&D"),
    "#1": (r"\#1", r"\#1"),
    "$x$": (r"\$x\$", "$x$"),
    "{a}": (r"\{a\}", r"\{a\}"),
    "a\\b": (r"a\textbackslash{}b", r"a\\b"),
    "~^": (r"\textasciitilde{}\textasciicircum{}", r"\~^"),
    "< 0.001": ("$<$ 0.001", r"\< 0.001"),
    "78.36 ± 2.42": (r"78.36 $\pm$ 2.42", "78.36 ± 2.42"),
    "−0.5": ("$-$0.5", "−0.5"),
    "–": ("--", "–"),
    "[x] *": ("{[}x] {*}", r"\[x\] \*"),
    "a|b": ("a|b", r"a\|b"),
    "two\n lines": ("two lines", "two lines"),
    "größe": ("größe", "größe"),
    "`x`": ("`x`", r"\`x\`"),
}


@pytest.mark.parametrize("text", LETTERS)
def test_letters(text: str) -> None:
    assert (latex(text), markdown(text)) == LETTERS[text]


def bare(text: str) -> str:
    """LaTeX without what is escaped: no letter with a meaning may be left."""
    text = re.sub(r"\\(textbackslash|textasciitilde|textasciicircum|ldots)\{\}", "", text)
    text = re.sub(r"\\[{}$&#_%]", "", text)
    return re.sub(r"\$(\\pm|\\times|-|<|>)\$|\{[\[*]\}", "", text)


def test_no_letter_of_ascii_keeps_a_meaning_in_latex() -> None:
    everything = "".join(map(chr, range(32, 127)))
    assert not set(bare(latex(everything))) & set("\\{}$&#_%~^<>[*")


def test_a_table_by_hand() -> None:
    table = Export("t", "50 %", ("Method", "A"), (("x_y", "1 ± 2"),), ({"m": "=x", "a": 0.1},))
    assert table.markdown == "| Method | A |\n|---|---:|\n| x\\_y | 1 ± 2 |\n"
    assert table.latex == (
        "% \\usepackage{booktabs}\n\\begin{table}\n  \\centering\n  \\caption{50 \\%}\n"
        "  \\label{tab:t}\n  \\begin{tabular}{lr}\n    \\toprule\n    Method & A \\\\\n"
        "    \\midrule\n    x\\_y & 1 $\\pm$ 2 \\\\\n    \\bottomrule\n  \\end{tabular}\n"
        "\\end{table}\n"
    )
    assert table.csv == "m,a\n'=x,0.1\n"  # no spreadsheet runs it


SCORES = {"baseline": [1 / 3, 0.5], "znorm": [0.7, 2 / 3]}


def runs_of(root: Path) -> list[Run]:
    runs = []
    for method, scores in SCORES.items():
        for seed, score in enumerate(scores):
            metrics = {"test_accuracy": score, "train_loss": 0.1 + score, "test_auroc": score / 7}
            choices = {"model": "resnet20", "epochs": 1, "method": method, "seed": seed}
            runs.append(recorded(root, choices, [metrics], finished(metrics, seconds=3.5)))
    diverged = {"status": "diverged", "diverged_step": 1, "metrics": {}, "seconds": 1.0}
    choices = {"model": "resnet20", "epochs": 1, "method": "znorm", "seed": 2}
    return [*runs, recorded(root, choices, result=diverged)]


def test_the_numbers_of_each_run_to_the_last_digit(tmp_path: Path) -> None:
    (table,) = gather(tmp_path, runs_of(tmp_path))
    found = exports(table, evidence(table), "runs-1")
    lines = list(csv.DictReader(io.StringIO(found["headline"].csv)))
    assert [(one["method"], one["seed"], one["status"]) for one in lines] == [
        ("baseline", "0", "done"),
        ("baseline", "1", "done"),
        ("znorm", "0", "done"),
        ("znorm", "1", "done"),
        ("znorm", "2", "diverged"),
    ]
    own = [float(one["test_accuracy"]) for one in lines[:4]]
    assert own == [*SCORES["baseline"], *SCORES["znorm"]]
    assert lines[4]["test_accuracy"] == ""
    differences = [one["test_accuracy_less_baseline"] for one in lines]
    assert differences == ["", "", repr(0.7 - 1 / 3), repr(2 / 3 - 0.5), ""]
    further = list(csv.DictReader(io.StringIO(found["further"].csv)))
    assert [float(one["test_auroc"]) for one in further[:2]] == [1 / 3 / 7, 0.5 / 7]
    assert {one["seconds"] for one in further} == {"3.5", ""}
    (first, *_) = csv.DictReader(io.StringIO(found["evidence"].csv))
    mean = ((0.7 - 1 / 3) + (2 / 3 - 0.5)) / 2
    assert float(first["difference"]) == pytest.approx(mean, rel=1e-15)
    assert first["pairs"] == "2"
    assert list(map(float, first["differences_by_pair"].split())) == [0.7 - 1 / 3, 2 / 3 - 0.5]


def test_all_lines_have_as_many_cells_and_the_page_has_them(tmp_path: Path) -> None:
    runs = runs_of(tmp_path)
    (table,) = gather(tmp_path, runs)
    found = exports(table, evidence(table), "runs-1")
    assert set(found) == {"headline", "further", "evidence"}
    for one in found.values():
        assert {len(row) for row in one.rows} == {len(one.titles)}
        body = [line for line in one.latex.splitlines() if line.endswith(r"\\")]
        assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {len(one.titles) - 1}
        unescaped = {len(re.findall(r"(?<!\\)\|", line)) for line in one.markdown.splitlines()}
        assert unescaped == {len(one.titles) + 1}
    text = write_page(
        tmp_path, runs, {runs[0].spec.data_key: DataError("no data here")}
    ).read_text()
    assert text.count("<summary>This table as Markdown, LaTeX or CSV</summary>") == 3
    assert text.count("\\toprule") == 3
    assert repr(1 / 3) in text


def test_without_a_baseline_there_is_no_evidence_to_take(tmp_path: Path) -> None:
    runs = [run for run in runs_of(tmp_path) if run.spec.method == "znorm"]
    (table,) = gather(tmp_path, runs)
    assert set(exports(table, evidence(table), "a")) == {"headline", "further"}
