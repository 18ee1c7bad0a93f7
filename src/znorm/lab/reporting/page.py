"""The report: one self-contained HTML file beside the runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import znorm
from znorm.lab.datasets import Dataset
from znorm.lab.errors import DataError
from znorm.lab.evidence.cases import case_evidence
from znorm.lab.evidence.endings import rule_of
from znorm.lab.evidence.question import Question
from znorm.lab.evidence.tuning import Tuning
from znorm.lab.metrics.scores import definition_of
from znorm.lab.models.external import library_of
from znorm.lab.reporting.card import card_of
from znorm.lab.reporting.cases import case_tables
from znorm.lab.reporting.confusion import confusions
from znorm.lab.reporting.data_card import data_card
from znorm.lab.reporting.differences import paired_differences
from znorm.lab.reporting.evidence import evidence
from znorm.lab.reporting.exports import exports
from znorm.lab.reporting.figures import curves, patches
from znorm.lab.reporting.folds import over_folds
from znorm.lab.reporting.gradients import gradients_by_depth
from znorm.lab.reporting.masks import mask_figure
from znorm.lab.reporting.methods_paragraph import methods_paragraph
from znorm.lab.reporting.record import record_of
from znorm.lab.reporting.strokes import Stroke, strokes_of
from znorm.lab.reporting.tables import Table, gather, images_of
from znorm.lab.reporting.trivial_baseline import TRIVIAL_BASELINES
from znorm.lab.reporting.tuning import tuning_evidence, under_way
from znorm.lab.reporting.why import why
from znorm.lab.reporting.workloads import over_workloads
from znorm.lab.runs.files import write_atomically
from znorm.lab.runs.folder import Run
from znorm.lab.runs.survey import Damaged
from znorm.lab.tasks import TASKS
from znorm.lab.text import link

__all__ = ["Frame", "Section", "render_page", "templates", "write_page"]

# By a configuration: what is to be known of its images.
Notes: TypeAlias = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Section:
    """A section that a page shows above those of its runs."""

    anchor: str
    title: str
    html: Markup


@dataclass(frozen=True)
class Frame:
    """The larger work that the runs of a page are a part of, such as a paper's tables.

    Parameters
    ----------
    title : str
        Of the page.
    statement : str
        A line below it; in a banner where the numbers are not a result.
    is_result : bool
        Whether the numbers may be read as a result.
    place : callable (Table) -> int
        Where a table stands among the others.
    sections : callable (tables, notes) -> sequence of Section
        What the page shows above the tables.
    style : Markup
        Rules of CSS for these sections.
    cases : tuple of str
        Names of test slices that the figure of masks shows, too.
    """

    title: str = "Comparison of gradient methods"
    statement: str = ""
    is_result: bool = True
    place: Callable[[Table], int] = lambda table: 0
    sections: Callable[[Sequence[Table], Notes], Sequence[Section]] = lambda tables, notes: ()
    style: Markup = Markup()  # noqa: RUF009  it has no state
    cases: tuple[str, ...] = ()


def templates(package: str = "znorm.lab.reporting") -> Environment:
    """The templates of a package, and those of this one."""
    return Environment(
        loader=ChoiceLoader([PackageLoader(package, ""), PackageLoader("znorm.lab.reporting", "")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def write_page(
    root: Path,
    runs: Sequence[Run],
    datasets: Mapping[str, Dataset | DataError],
    frame: Frame | None = None,
    *,
    images: bool = True,
    damaged: Sequence[Damaged] = (),
    question: Question | None = None,
    tunings: Mapping[str, Tuning] | None = None,
) -> Path:
    """Write ``report.html`` under ``root``; parameters as :func:`render_page`."""
    path = root / "report.html"
    page = render_page(
        root,
        runs,
        datasets,
        frame,
        images=images,
        damaged=damaged,
        question=question,
        tunings=tunings,
    )
    # Names of folders and texts of runs can hold what UTF-8 cannot.
    write_atomically(path, page.encode(errors="replace"))
    return path


def render_page(
    root: Path,
    runs: Sequence[Run],
    datasets: Mapping[str, Dataset | DataError],
    frame: Frame | None = None,
    *,
    images: bool = True,
    damaged: Sequence[Damaged] = (),
    question: Question | None = None,
    tunings: Mapping[str, Tuning] | None = None,
) -> str:
    """The page of runs; links to them are relative to ``root``.

    Parameters
    ----------
    root : Path
    runs : sequence of Run
    datasets : mapping
        By the runs' ``data_key``, or why they cannot be loaded.
    frame : Frame, optional
        What the runs are a part of; by default a comparison that stands for itself.
    images : bool
        Whether pictures of the data are shown.
    damaged : sequence of Damaged
        Runs that cannot be read, which the page names.
    question : Question, optional
        The one that the runs were begun with.
    tunings : mapping, optional
        By which methods' own learning rates and schedules were chosen, as `gather` takes them.
    """
    frame = frame or Frame()
    tables = sorted(gather(root, runs, question, tunings), key=frame.place)
    strokes = strokes_of(row.label for table in tables for row in table.rows)
    sections = [
        _section(
            root, table, datasets[table.spec.data_key], frame, strokes, f"runs-{n}", images=images
        )
        for n, table in enumerate(tables, start=1)
    ]
    notes = {section["table"].spec.configuration: section["data"].notes for section in sections}
    return (
        templates()
        .get_template("page.html.j2")
        .render(
            sections=sections,
            frame=frame,
            frame_sections=frame.sections(tables, notes),
            images=images,
            strokes=strokes,
            folds=over_folds(tables),
            workloads=over_workloads(tables, strokes),
            under_way=under_way(runs, tunings or {}),
            damaged=[
                {
                    "folder": _relative(root, entry.folder),
                    "link": link(root, entry.folder),
                    "reason": entry.reason,
                }
                for entry in damaged
            ],
            version=znorm.__version__,
            record=record_of(root, runs),
        )
    )


def _section(
    root: Path,
    table: Table,
    dataset: Dataset | DataError,
    frame: Frame,
    strokes: Mapping[str, Stroke],
    anchor: str,
    *,
    images: bool,
) -> dict[str, Any]:
    """The section of a table, as the template takes it."""
    trained_on = images_of(table.runs)
    exchanged = (
        isinstance(dataset, Dataset) and bool(trained_on) and dataset.fingerprint not in trained_on
    )
    if exchanged:
        dataset = DataError("others have been put in their place")
    data = data_card(root, table.spec, dataset, trained_on)
    validation_images = sum(data.images["validation"]) if "validation" in data.images else None
    pictures: dict[str, Any] = {"patches": (), "masks": None}
    if images and isinstance(dataset, Dataset):
        pictures["patches"] = patches(dataset)
        pictures["masks"] = mask_figure(table, dataset, frame.cases)
    task = TASKS[table.spec.task]
    found = evidence(table)
    return {
        **pictures,
        "data": data,
        "exchanged": exchanged,
        "table": table,
        "anchor": anchor,
        "task": task,
        "name": f"{task.label}, {table.spec.model}{table.suffix}",
        "baseline": TRIVIAL_BASELINES[task.output],
        "card": card_of(table),
        "rule": rule_of(table.runs),
        "start": _start(table),
        "evidence": found,
        "paragraph": methods_paragraph(table, data),
        "exports": exports(table, found, anchor),
        "cases": _cases(table),
        "case_tables": case_tables(root, table, dataset, images=images),
        "definitions": _definitions(table),
        "curves": curves(table, strokes),
        "differences": paired_differences(table, strokes),
        "confusions": confusions(root, table, data.classes, data.images.get("test", ())),
        "gradients": gradients_by_depth(table, strokes),
        "why": why(table, strokes),
        "tuning": tuning_evidence(root, table, validation_images, strokes),
    }


def _cases(table: Table) -> dict[str, Any] | None:
    """The question's method against the baseline, case by case, where masks are at stake."""
    row = table.asked
    if row is None or row.comparison is None or TASKS[table.spec.task].output != "mask":
        return None
    try:
        found = case_evidence(row.comparison.pairs)
    except DataError as error:
        return {"label": row.label, "problem": str(error), "found": None}
    return None if found is None else {"label": row.label, "problem": "", "found": found}


def _start(table: Table) -> str:
    """A sentence on the weights that all runs started from; "" where these were drawn."""
    if table.spec.start_digest is None:
        library = library_of(table.spec.model)
        if library is None or table.spec.model_options.get("pretrained") is not True:
            return ""
        return f"every method and seed from the pretrained weights of {library}"
    text = f"every method and seed from the same weights (sha256 {table.spec.start_digest[:12]})"
    heads = {str(head) for run in table.runs if (head := (run.result or {}).get("new_head"))}
    if heads:
        text += (
            f"; {', '.join(sorted(heads))} drawn anew by the seed, for another number of classes"
        )
    return text


def _definitions(table: Table) -> list[tuple[str, str]]:
    """A sentence on the score of each column that has one."""
    # Those of the user's own metrics are in the results: their code is not imported for a page.
    own = [(run.result or {}).get("definitions") for run in table.runs]
    written = next((one for one in own if isinstance(one, dict)), {})
    sentences = [
        (column.title, definition_of(name) or written.get(name))
        for column in table.columns
        for name in [column.key.removeprefix("test_")]
    ]
    return [(title, sentence) for title, sentence in sentences if isinstance(sentence, str)]


def _relative(root: Path, folder: Path) -> str:
    return folder.relative_to(root).as_posix() if folder.is_relative_to(root) else str(folder)
