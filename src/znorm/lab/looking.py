"""A first look at a folder of the user's, before anything is trained on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from znorm.lab import tasks
from znorm.lab.datasets.own.contents import Contents
from znorm.lab.datasets.own.doubts import doubts_of
from znorm.lab.datasets.own.tasks import contents_of_data
from znorm.lab.reporting.first_look import write_first_look
from znorm.lab.runs.files import write_table
from znorm.lab.spec import RunSpec

__all__ = ["first_look"]


def first_look(specs: Sequence[RunSpec], out: Path, note: Callable[[str], None]) -> Path | None:
    """Write the page on a folder's images and the table of their parts, and say what is doubtful.

    The table, ``parts.csv``, or ``folds.csv`` where there are several, is one that ``--table``
    takes. Of other data sets nothing is written.

    Parameters
    ----------
    specs : sequence of RunSpec
        Of the runs that are to be trained.
    out : Path
        The folder of the runs.
    note : callable

    Returns
    -------
    Path or None
        Of the page.

    Raises
    ------
    ConfigurationError, DataError
    """
    folds = {one.data.contents: one for one in specs if one.data.folder is not None}
    if not folds:
        return None
    spec, *_ = folds.values()
    several = [contents_of_data(one.data) for one in folds.values()]
    dataset = tasks.load(spec.task, spec.data.model_copy(update={"limit": None}))
    doubts = doubts_of(several[0], dataset)
    page = write_first_look(out, spec, several[0], dataset, doubts)
    write_table(out / ("parts.csv" if len(several) == 1 else "folds.csv"), _rows(several))
    named = "; ".join(f"{one.what} ({one.count})" if one.count else one.what for one in doubts)
    note(f"a first look: {page}; {'doubtful: ' + named if doubts else 'nothing is doubtful'}")
    return page


def _rows(several: Sequence[Contents]) -> list[dict[str, Any]]:
    """A row a file: what is learned from it, its group, and its part or the fold that tests it."""
    listing = several[0].listing
    rows: dict[Path, Mapping[str, Any]] = {}
    for place, item in enumerate(listing.items):
        row: dict[str, Any] = {"file": item.image.relative_to(listing.folder).as_posix()}
        if item.mask is None:
            row["label"] = item.label
        else:
            row["mask"] = item.mask.relative_to(listing.folder).as_posix()
        row["group"] = item.group
        if len(several) == 1:
            row["part"] = several[0].parts[place]
        else:
            row["fold"] = next(
                fold for fold, one in enumerate(several, 1) if one.parts[place] == "test"
            )
        rows[item.image] = row
    return [dict(row) for row in rows.values()]
