"""The page's tables to take away: as Markdown and LaTeX for a text, as CSV for a computation."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from znorm.lab import csvfiles
from znorm.lab.evidence.endings import last_epoch
from znorm.lab.reporting.evidence import Evidence
from znorm.lab.reporting.tables import Row, Table, plain
from znorm.lab.reporting.trivial_baseline import TRIVIAL_BASELINES
from znorm.lab.runs.folder import Run
from znorm.lab.tasks import TASKS

__all__ = ["Export", "exports"]

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "_": r"\_",
    "%": r"\%",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    # In the fonts that LaTeX begins with these two are other characters.
    "<": "$<$",
    ">": "$>$",
    "±": r"$\pm$",
    "−": "$-$",
    "×": r"$\times$",
    "–": "--",
    "…": r"\ldots{}",
    # After the end of a row these two would be its arguments.
    "[": "{[}",
    "*": "{*}",
}
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|#~])")


@dataclass(frozen=True)
class Export:
    """A table.

    Parameters
    ----------
    name : str
        Of its files, and of its label in LaTeX.
    caption : str
    titles : tuple of str
    rows : tuple of tuple of str
        As the page shows them, without single runs.
    records : tuple of mapping
        The numbers in full precision, a run a record where there are runs.
    """

    name: str
    caption: str
    titles: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    records: tuple[Mapping[str, Any], ...]

    @property
    def markdown(self) -> str:
        """A table as GitHub and pandoc read it."""
        lines = [self.titles, *self.rows]
        texts = [f"| {' | '.join(map(markdown, line))} |" for line in lines]
        rule = f"|{'|'.join(['---', *['---:'] * (len(self.titles) - 1)])}|"
        return "\n".join([texts[0], rule, *texts[1:]]) + "\n"

    @property
    def latex(self) -> str:
        """A table with the rules of the package booktabs."""
        head, *body = (f"{' & '.join(map(latex, line))} \\\\" for line in (self.titles, *self.rows))
        return "\n".join(
            [
                r"% \usepackage{booktabs}",
                r"\begin{table}",
                r"  \centering",
                rf"  \caption{{{latex(self.caption)}}}",
                rf"  \label{{tab:{self.name}}}",
                rf"  \begin{{tabular}}{{l{'r' * (len(self.titles) - 1)}}}",
                r"    \toprule",
                f"    {head}",
                r"    \midrule",
                *(f"    {line}" for line in body),
                r"    \bottomrule",
                r"  \end{tabular}",
                r"\end{table}",
                "",
            ]
        )

    @property
    def csv(self) -> str:
        """The records, below a line of their keys."""
        return csvfiles.dump(self.records).decode(errors="surrogateescape") if self.records else ""


def latex(text: str) -> str:
    """A text as LaTeX sets it, letter by letter.

    >>> latex("50 % of a_b ± 2")
    '50 \\\\% of a\\\\_b $\\\\pm$ 2'
    """
    return "".join(_LATEX.get(one, one) for one in " ".join(text.split()))


def markdown(text: str) -> str:
    """A text as a cell of Markdown shows it, letter by letter.

    >>> markdown("a|b_c")
    'a\\\\|b\\\\_c'
    """
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))


def exports(table: Table, evidence: Evidence | None, name: str) -> dict[str, Export]:
    """The tables of a section: ``headline``, ``further`` and, where there is one, ``evidence``.

    ``name`` is what the names of their files begin with.
    """
    headline, *further = table.columns
    spec = table.spec
    about = f"{spec.task}, {spec.model}{table.suffix}; {table.seeds} seeds, {spec.epochs} epochs"
    means = "mean ± half the 95 % t interval over seeds"
    points = ", points" if headline.scale == 100 else ""
    found = {
        "headline": Export(
            f"{name}-scores",
            f"{headline.title}: {means}. {about}.",
            (
                "Method",
                headline.title,
                f"{headline.title.replace(', %', '')} against Baseline{points}",
                "Epochs to the baseline's final score",
            ),
            (
                *(
                    (
                        row.label,
                        plain(row.cells[0]),
                        "" if row.difference is None else plain(row.difference),
                        plain(row.epochs_to_baseline),
                    )
                    for row in table.rows
                ),
                *_floor(table, [headline.key, "", ""]),
            ),
            tuple(_scores(table)),
        ),
        "further": Export(
            f"{name}-further-scores",
            f"Further scores: {means}. {about}.",
            ("Method", *(column.title for column in further)),
            (
                *((row.label, *map(plain, row.cells[1:])) for row in table.rows),
                *_floor(table, [column.key for column in further]),
            ),
            tuple(_further(table)),
        ),
    }
    if evidence is not None:
        found["evidence"] = Export(
            f"{name}-against-baseline",
            f"{headline.title.replace(', %', '')}{points}, against the baseline. {about}.",
            ("Method", *evidence.titles),
            tuple((line.label, *line.texts) for line in evidence.lines),
            tuple(_evidence(table)),
        )
    return found


def _floor(table: Table, keys: Sequence[str]) -> list[tuple[str, ...]]:
    """The row of what a net must beat, if any of these scores is known of it."""
    known = (table.trivial_baseline or {}).get("metrics", {})
    if not any(key in known for key in keys):
        return []
    columns = {column.key: column for column in table.columns}
    label = f"Floor: {TRIVIAL_BASELINES[TASKS[table.spec.task].output].label}"
    texts = (columns[key].show(known[key]) if key in known else "" for key in keys)
    return [(label, *texts)]


def _runs(table: Table) -> Iterable[tuple[Row, Run, dict[str, Any]]]:
    for row in table.rows:
        for run in row.runs:
            first = {"method": run.spec.method, "specification": run.spec.hash}
            yield row, run, {**first, "seed": run.spec.seed, "status": run.status}


def _scores(table: Table) -> Iterable[dict[str, Any]]:
    key = table.columns[0].key
    for row, run, record in _runs(table):
        pairs = () if row.comparison is None else row.comparison.pairs.made
        reference = next((pair.reference for pair in pairs if pair.run is run), None)
        arrivals = () if row.acceleration is None else row.acceleration.arrivals
        reached = next((one.epoch for one in arrivals if one.run is run), None)
        difference = None
        if reference is not None:
            difference = _number(last_epoch(run, key) - last_epoch(reference, key))
        yield {
            **record,
            key: run.metrics.get(key),
            f"{key}_less_baseline": difference,
            "epochs_to_baseline": reached,
        }


def _further(table: Table) -> Iterable[dict[str, Any]]:
    for _, run, record in _runs(table):
        seconds = (run.result or {}).get("seconds") if run.status == "done" else None
        values = {**run.metrics, "seconds": seconds}
        yield {**record, **{column.key: values.get(column.key) for column in table.columns[1:]}}


def _evidence(table: Table) -> Iterable[dict[str, Any]]:
    for row in table.rows:
        for ending, one in row.comparisons.items():
            interval = one.interval
            half = None if interval is None else interval.half
            yield {
                "method": row.method,
                "specification": row.runs[0].spec.hash,
                "read_at": ending,
                "pairs": len(one.differences),
                "difference": None if interval is None else interval.mean,
                "half_interval": half,
                "p": _number(one.p),
                "p_holm": _number(one.holm_p),
                "p_signs_flipped": _number(one.sign_flip_p),
                "above_baseline": _number(one.improvement),
                "g": _number(one.g),
                "time_ratio": _number(one.ratio),
                "differences_by_pair": " ".join(map(repr, one.differences)),
            }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
