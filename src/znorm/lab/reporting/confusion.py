"""Confusion matrices: test images by true and predicted class, summed over a method's runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from znorm.lab.errors import DataError
from znorm.lab.reporting.tables import Row, Table, Value
from znorm.lab.runs.folder import Run
from znorm.lab.tasks import TASKS
from znorm.lab.text import link

__all__ = ["Confused", "Confusions", "Matrix", "confusions"]

# Of more classes the pairs that are taken for each other most often.
MOST_CLASSES = 12
PAIRS = 10


@dataclass(frozen=True)
class Matrix:
    """A method's.

    Parameters
    ----------
    label : str
    counts : tuple of tuple of int
        A row a true class; columns are what was predicted.
    values : tuple of Value
        The runs, each with the file of its counts.
    """

    label: str
    counts: tuple[tuple[int, ...], ...]
    values: tuple[Value, ...]

    def share(self, true: int, predicted: int) -> float:
        """The share of a true class's images that were predicted so; 0 where there are none."""
        total = sum(self.counts[true])
        return self.counts[true][predicted] / total if total else 0.0


@dataclass(frozen=True)
class Confused:
    """Two classes, and how many images of the one each method took for the other."""

    true: str
    predicted: str
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Confusions:
    """Those of all methods of a table.

    Parameters
    ----------
    classes : tuple of str
    matrices : tuple of Matrix
    pairs : tuple of Confused
        In place of whole matrices, where there are more than a dozen classes: the most confused.
    missing : str
        A word on runs without counts, or "".
    """

    classes: tuple[str, ...]
    matrices: tuple[Matrix, ...]
    pairs: tuple[Confused, ...]
    missing: str


def confusions(
    root: Path, table: Table, classes: Sequence[str], images: Sequence[int] = ()
) -> Confusions | None:
    """The confusion matrices of a table; None for masks, and where no run has finished.

    Parameters
    ----------
    root : Path
        Links are relative to it.
    table : Table
    classes : sequence of str
        In the order that they are shown in, those of the data set; other names come after them.
    images : sequence of int
        How many test images each class has, where that is known: for runs of two classes which
        kept no counts, but shares that they follow from.
    """
    done = [run for run in table.runs if run.status == "done"]
    if TASKS[table.spec.task].output != "classes" or not done:
        return None
    kept: dict[Path, Mapping[tuple[str, str], int]] = {}
    damaged = []
    for run in done:
        try:
            counts = run.confusion()
        except DataError as error:
            damaged.append(str(error))
            continue
        if counts is None:
            counts = _from_shares(run, classes, images)
        if counts is not None:
            kept[run.folder] = counts
    missing = "; ".join(damaged)
    lacking = len(done) - len(kept) - len(damaged)
    if lacking:
        missing = "; ".join(
            [
                f"{lacking} of {len(done)} runs are of an earlier version, which kept no counts of "
                "classes that are taken for each other",
                *damaged,
            ]
        )
    met = [name for counts in kept.values() for pair in counts for name in pair]
    names = tuple(dict.fromkeys([*classes, *sorted(met)])) if met else ()
    matrices = tuple(
        matrix for row in table.rows if (matrix := _matrix(root, row, names, kept)) is not None
    )
    pairs = _most_confused(names, matrices) if len(names) > MOST_CLASSES else ()
    return Confusions(names, matrices, pairs, missing)


def _from_shares(
    run: Run, classes: Sequence[str], images: Sequence[int]
) -> dict[tuple[str, str], int] | None:
    """The counts that sensitivity and specificity are shares of; None where they are of others."""
    shares = [run.metrics.get(f"test_{name}") for name in ("specificity", "sensitivity")]
    if len(classes) != 2 or len(images) != 2 or None in shares:
        return None
    found = {}
    for place, (share, total) in enumerate(zip(shares, images, strict=True)):
        right = (share or 0.0) * total
        if abs(right - round(right)) > 1e-6:
            return None
        true, other = classes[place], classes[1 - place]
        found[true, true], found[true, other] = round(right), total - round(right)
    return found


def _matrix(
    root: Path, row: Row, names: Sequence[str], kept: Mapping[Path, Mapping[tuple[str, str], int]]
) -> Matrix | None:
    runs: list[Run] = [run for run in row.runs if run.folder in kept]
    if not runs:
        return None
    total: Counter[tuple[str, str]] = Counter()
    for run in runs:
        total.update(kept[run.folder])
    values = tuple(Value(run.spec.seed, str(run.spec.seed), link(root, _file(run))) for run in runs)
    counts = tuple(tuple(total[true, predicted] for predicted in names) for true in names)
    return Matrix(row.label, counts, values)


def _file(run: Run) -> Path:
    """The file with a run's counts, or with the shares that they follow from."""
    own = run.folder / "cases.csv"
    return own if own.exists() else run.folder / "result.json"


def _most_confused(names: Sequence[str], matrices: Sequence[Matrix]) -> tuple[Confused, ...]:
    """The pairs with most images over all methods; those that no method confuses are none."""
    found = [
        Confused(true, predicted, tuple(matrix.counts[i][j] for matrix in matrices))
        for i, true in enumerate(names)
        for j, predicted in enumerate(names)
        if i != j
    ]
    found.sort(key=lambda one: -sum(one.counts))
    return tuple(one for one in found[:PAIRS] if sum(one.counts))
