"""The report of all runs below a folder: what it needs is read, then the page is written."""

from __future__ import annotations

from pathlib import Path

from znorm.lab import tasks, trust
from znorm.lab.datasets import Dataset
from znorm.lab.errors import ConfigurationError, DataError
from znorm.lab.evidence.question import Question
from znorm.lab.evidence.tuning import Tuning, read_tunings
from znorm.lab.reporting.page import Frame, write_page
from znorm.lab.reporting.trivial_baseline import trivial_baseline
from znorm.lab.runs.folder import Run
from znorm.lab.runs.survey import Damaged, survey

__all__ = ["asked_and_tuned", "write_report"]


def write_report(
    root: Path, *, images: bool, trust_models: bool = False, frame: Frame | None = None
) -> tuple[Path, list[Damaged]]:
    """Write ``report.html`` under ``root``; its path, and what cannot be read.

    Parameters
    ----------
    root : Path
    images, trust_models : bool
        As :func:`znorm.lab.report` takes them.
    frame : Frame, optional
        What the runs are a part of.

    Raises
    ------
    DataError
        If there are no runs.
    """
    with trust.trusting(everything=trust_models):
        runs, damaged = survey(root)
        if not runs and not damaged:
            raise DataError(f"{root}: no runs in it; znorm compare makes some")
        datasets: dict[str, Dataset | DataError] = {}
        for run in runs:
            key = run.spec.data_key
            if key not in datasets:
                datasets[key] = _dataset(run)
            dataset = datasets[key]
            if isinstance(dataset, Dataset):
                trivial_baseline(root, run.spec, dataset)
        question, tunings, unread = asked_and_tuned(root)
        damaged = [*damaged, *unread]
        page = write_page(
            root,
            runs,
            datasets,
            frame,
            images=images,
            damaged=damaged,
            question=question,
            tunings=tunings,
        )
        return page, damaged


def asked_and_tuned(root: Path) -> tuple[Question | None, dict[str, Tuning], list[Damaged]]:
    """The question and the trials that a folder keeps, and which of these cannot be read."""
    unread: list[Damaged] = []
    question: Question | None
    try:
        question = Question.read(root)
    except DataError as error:
        # Of a method that nobody has: the first one beside the baseline takes its place, with
        # intervals that hold whether or not seeds were added until it was decided.
        question = Question("?", sequential=True)
        reason = f"{error}; answers below are to a gain of a point, at all looks at once"
        unread.append(Damaged(root / "question.json", reason))
    tunings: dict[str, Tuning] = {}
    try:
        tunings = read_tunings(root)
    except DataError as error:
        unread.append(Damaged(root / "tuning.json", str(error)))
    return question, tunings, unread


def _dataset(run: Run) -> Dataset | DataError:
    """The run's images, or why they are not here: results are shown without them, too."""
    try:
        return tasks.load(run.spec.task, run.spec.data)
    except DataError as error:
        return error
    except ConfigurationError as error:
        return DataError(str(error))
