"""A first look at a folder of the user's, before anything is trained on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from znorm.lab import tasks
from znorm.lab.datasets.own.doubts import doubts_of
from znorm.lab.datasets.own.tasks import contents_of_data
from znorm.lab.reporting.first_look import write_first_look
from znorm.lab.spec import RunSpec

__all__ = ["first_look"]


def first_look(specs: Sequence[RunSpec], out: Path, note: Callable[[str], None]) -> Path | None:
    """Write the page on a folder's images, and say what is doubtful; None for other data sets.

    Parameters
    ----------
    specs : sequence of RunSpec
        Of the runs that are to be trained.
    out : Path
        The folder of the runs.
    note : callable

    Raises
    ------
    ConfigurationError, DataError
    """
    spec = next((one for one in specs if one.data.folder is not None), None)
    if spec is None:
        return None
    contents = contents_of_data(spec.data)
    dataset = tasks.load(spec.task, spec.data.model_copy(update={"limit": None}))
    doubts = doubts_of(contents, dataset)
    page = write_first_look(out, spec, contents, dataset, doubts)
    named = "; ".join(f"{one.what} ({one.count})" if one.count else one.what for one in doubts)
    note(f"a first look: {page}; {'doubtful: ' + named if doubts else 'nothing is doubtful'}")
    return page
