"""Case by case: each test image and patient, those that fare worst first, with its picture."""

from __future__ import annotations

import base64
import io
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image
from torch import Tensor

from znorm.lab import tasks
from znorm.lab.datasets import Dataset
from znorm.lab.datasets.own.tasks import files_of_data
from znorm.lab.errors import LabError
from znorm.lab.metrics import Cases, ClassCases
from znorm.lab.reporting.overlays import case, outlined
from znorm.lab.reporting.tables import Table, images_of
from znorm.lab.runs.folder import Run
from znorm.lab.spec import RunSpec
from znorm.lab.text import link

__all__ = ["CaseRow", "CaseTable", "case_tables"]

# Rows that a page shows of each table, and how many of them with a picture.
_ROWS, _PICTURES = 60, 24
_SIDE = 128


@dataclass(frozen=True)
class CaseRow:
    """A case or a patient.

    Parameters
    ----------
    name : str
    about : str
        The patient and the true class of a case, where they are known.
    scores : tuple of float
        Of each method, the mean over its runs.
    link : str
        To its picture's file, where that is the user's own; else empty.
    picture : str
        As a data URI; empty where there is none.
    """

    name: str
    about: str
    scores: tuple[float, ...]
    link: str = ""
    picture: str = ""


@dataclass(frozen=True)
class CaseTable:
    """The cases, patients or classes of masks of a test part.

    Parameters
    ----------
    unit : "case", "patient" or "class"
    score : str
        The quantity that a row has of each method.
    methods : tuple of str
        Their labels.
    rows : tuple of CaseRow
        The worst first, by the mean over methods.
    count : int
        Of all, of which the rows are the first.
    about : str
        The title of what rows say beside their scores.
    """

    unit: str
    score: str
    methods: tuple[str, ...]
    rows: tuple[CaseRow, ...]
    count: int
    about: str = ""


@dataclass(frozen=True)
class _Scores:
    """The scores of one run by case; by patient and by class of masks, where there are some."""

    about: Mapping[str, str]
    of_cases: Mapping[str, float]
    of_patients: Mapping[str, float]
    of_labels: Mapping[str, float]


def case_tables(
    root: Path, table: Table, dataset: Dataset | Exception, *, images: bool
) -> list[CaseTable]:
    """The tables of cases, and of patients and classes of masks where there are some.

    None where no run kept its cases.

    Runs whose cases are others than the first one's are left out: they cannot be averaged.

    Parameters
    ----------
    root : Path
        Of the page.
    table : Table
    dataset : Dataset or an error
        Its images, for pictures.
    images : bool
        Whether pictures are shown.
    """
    kept: dict[str, list[_Scores]] = {}
    for row in table.rows:
        of_runs = [scores for run in row.runs if (scores := _scores_of(run)) is not None]
        names = next(iter(kept.values() or [of_runs]))[0].of_cases if kept or of_runs else {}
        alike = [one for one in of_runs if one.of_cases.keys() == names.keys()]
        if alike:
            kept[row.label] = alike
    if not kept or len(images_of(table.runs)) > 1:
        return []
    is_mask = tasks.TASKS[table.spec.task].output == "mask"
    of_cases = {label: [one.of_cases for one in several] for label, several in kept.items()}
    first_run = next(iter(kept.values()))[0]
    score = "Dice" if is_mask else "probability of the true class"
    about = "Patient" if is_mask else "True class"
    cases = replace(_table("case", score, of_cases, first_run.about), about=about)
    if images and isinstance(dataset, Dataset):
        rows = _with_links(root, table.spec, _with_pictures(cases.rows, dataset))
        cases = replace(cases, rows=rows)
    found = [cases]
    if first_run.of_patients:
        score = "Dice of all pixels" if is_mask else "share of images that are right"
        patients = {label: [one.of_patients for one in several] for label, several in kept.items()}
        found.append(_table("patient", score, patients, {}))
    if first_run.of_labels:
        labels = {label: [one.of_labels for one in several] for label, several in kept.items()}
        found.append(_table("class", "F1 of all pixels", labels, {}))
    return found


def _scores_of(run: Run) -> _Scores | None:
    try:
        masks, classes = run.cases(), run.class_cases()
    except LabError:
        return None  # the page names what cannot be read
    if masks is not None:
        return _of_masks(masks)
    return None if classes is None else _of_classes(classes)


def _of_masks(cases: Cases) -> _Scores:
    of_cases = dict(zip(cases.case_names, cases.dice().tolist(), strict=True))
    of_labels = {}
    if cases.labels is not None:
        of_labels = {label: one.scores()["f1"] for label, one in cases.by_label().items()}
    if cases.patients is None:
        return _Scores({}, of_cases, {}, of_labels)
    of_patients = cases.dice(of_patients=True).tolist()
    return _Scores(
        dict(zip(cases.names, cases.patients, strict=True)),
        of_cases,
        dict(zip(cases.patient_names, of_patients, strict=True)),
        of_labels,
    )


def _of_classes(cases: ClassCases) -> _Scores:
    right: defaultdict[str, list[bool]] = defaultdict(list)
    about = dict(zip(cases.names, cases.truth, strict=True))
    if cases.patients is not None:
        for name, patient in zip(cases.names, cases.patients, strict=True):
            about[name] += f"; {patient}"
        for patient, true, predicted in zip(
            cases.patients, cases.truth, cases.predicted, strict=True
        ):
            right[patient].append(true == predicted)
    of_patients = {patient: statistics.fmean(found) for patient, found in right.items()}
    return _Scores(about, dict(zip(cases.names, cases.shares, strict=True)), of_patients, {})


def _table(
    unit: str,
    score: str,
    of_methods: Mapping[str, Sequence[Mapping[str, float]]],
    about: Mapping[str, str],
) -> CaseTable:
    names = next(iter(of_methods.values()))[0]
    rows = [
        CaseRow(
            name,
            about.get(name, ""),
            tuple(
                statistics.fmean(run[name] for run in several) for several in of_methods.values()
            ),
        )
        for name in names
    ]
    rows.sort(key=lambda row: (statistics.fmean(row.scores), row.name))
    return CaseTable(unit, score, tuple(of_methods), tuple(rows[:_ROWS]), len(rows))


def _with_links(root: Path, spec: RunSpec, rows: Sequence[CaseRow]) -> tuple[CaseRow, ...]:
    """The rows, those of the user's own images with a link to the file."""
    try:
        files = files_of_data(spec.data)
    except LabError:
        files = {}  # the images are not here any more; the page says so
    return tuple(
        replace(row, link=link(root, files[row.name])) if row.name in files else row for row in rows
    )


def _with_pictures(rows: Sequence[CaseRow], dataset: Dataset) -> tuple[CaseRow, ...]:
    """The rows, the first of them with a picture, the true outline drawn in."""
    test = dataset.test
    places = {name: place for place, name in enumerate(test.case_names)}
    wanted = [row.name for row in rows[:_PICTURES] if row.name in places]
    if not wanted:
        return tuple(rows)
    few = test.take_cases(wanted)
    images = dict(zip(few.case_names, few.cases(few.images), strict=True))
    masks = dict(zip(few.case_names, few.cases(few.targets), strict=True))
    return tuple(
        replace(row, picture=_picture(images[row.name], masks[row.name]))
        if row.name in images
        else row
        for row in rows
    )


def _picture(image: Tensor, target: Tensor) -> str:
    """A case as a small PNG."""
    truth = target if target.ndim == 2 else target.new_zeros(image.shape[1:])
    with Image.open(io.BytesIO(outlined(case("", image, truth, {})))) as picture:
        picture.thumbnail((_SIDE, _SIDE))
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
