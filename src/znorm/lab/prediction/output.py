"""Files that a prediction writes, and those of an earlier one that it replaces."""

from __future__ import annotations

import io
import os
from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from znorm.lab import csvfiles
from znorm.lab.datasets import Split
from znorm.lab.datasets.files import inside
from znorm.lab.errors import DataError
from znorm.lab.metrics import Cases
from znorm.lab.metrics.segmentation import Counts
from znorm.lab.reporting.overlays import case, draw_cases, notable, outlined
from znorm.lab.runs.files import read_file, write_atomically
from znorm.lab.training.weights import RESERVED

__all__ = [
    "STARTED",
    "check_free",
    "class_rows",
    "files_of",
    "names_of_earlier",
    "remove",
    "remove_earlier",
    "write_masks",
]

# The names of what a call is about to write, while it does: what it leaves if it is stopped.
STARTED = "predictions.started.csv"
# Columns of a table of masks, without truth and with it; by them a table is known for one of ours.
_MARKED = ["name", "marked"]
_COUNTS = [field.name for field in fields(Counts)]
_DISTANCES = ["hausdorff", "hausdorff95", "hausdorff_rows"]
_SCORED = ["name", "patient", *_COUNTS, *_DISTANCES, "dice"]
# Rows of the figure where no truth tells which cases are the best and the worst.
_SHOWN = 3


def files_of(home: Path, names: Sequence[str]) -> list[Path]:
    """The pictures that are written of masks with these names."""
    kinds = [home / kind / f"{name}.png" for name in names for kind in ("masks", "overlays")]
    return [*kinds, home / "cases.png"] if names else []


def check_free(files: Iterable[Path], earlier: Container[Path]) -> None:
    """Refuse to write over a file that no earlier call has written.

    Raises
    ------
    DataError
    """
    for path in files:
        if path not in earlier and os.path.lexists(path):
            raise DataError(
                f"{path}: is in the way and not of an earlier call; move it away, or give another "
                "folder with --out"
            )


def names_of_earlier(home: Path) -> list[str]:
    """The names of masks that earlier calls wrote, one that was stopped too.

    Raises
    ------
    DataError
        If the table is not one that a call wrote: it is somebody's own.
    """
    names: list[str] = []
    for path in (home / "predictions.csv", home / STARTED):
        try:
            rows = csvfiles.load(read_file(path, 1 << 30))
        except FileNotFoundError:
            continue
        except ValueError:
            rows = []
        columns = list(rows[0]) if rows else []
        if columns == ["started"] and path.name == STARTED:
            names += [row["started"] for row in rows]
        elif columns in (_MARKED, _SCORED) and path.name != STARTED:
            names += [row["name"] for row in rows]
        elif path.name == STARTED or not _is_of_classes(columns, rows):
            raise DataError(
                f"{path}: not what an earlier call wrote; move it away, or give another folder "
                "with --out"
            )
    return list(dict.fromkeys(names))


def _is_of_classes(columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> bool:
    known = [name for name in RESERVED if name in columns]
    classes = columns[len(known) :]
    return (
        list(columns[: len(known)]) == known
        and {"name", "predicted"} <= set(known)
        and len(classes) > 1
        and all(row["predicted"] in classes for row in rows)
    )


def remove_earlier(home: Path, names: Sequence[str]) -> None:
    """Remove the files of earlier calls, the table first, and nothing else.

    The table may be anybody's: nothing outside of the folder is removed, whatever it names.
    """
    remove(home / "predictions.csv")
    for kind in ("masks", "overlays"):
        if (home / kind).is_symlink():
            continue
        for name in names:
            with suppress(DataError, OSError, ValueError):
                inside(home / kind, f"{name}.png").unlink(missing_ok=True)
    if names:
        remove(home / "cases.png")


def remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{path}: cannot be removed ({error.strerror or error})") from None


def class_rows(
    split: Split,
    names: Sequence[str],
    shares: Tensor,
    classes: Sequence[str],
    *,
    truth: bool,
) -> list[dict[str, Any]]:
    """The table of classes: a row an image, with the share of each class."""
    rows = []
    for row, name in enumerate(names):
        line: dict[str, Any] = {"name": name}
        if truth:
            line["truth"] = classes[int(split.targets[row])]
        line["predicted"] = classes[int(shares[row].argmax())]
        rows.append({**line, **dict(zip(classes, shares[row].tolist(), strict=True))})
    return rows


def write_masks(
    home: Path, split: Split, names: Sequence[str], masks: Tensor, *, truth: bool
) -> list[dict[str, Any]]:
    """Write the pictures of all masks; their rows in the table come back."""
    rows: list[dict[str, Any]]
    if truth:
        cases = Cases.of(masks, split.targets > 0, names, split.patients or None)
        scores = cases.counts.dice().tolist()
        rows = [{**row, "dice": score} for row, score in zip(cases.rows(), scores, strict=True)]
        shown = notable(scores, cases.target_found.tolist())
    else:
        rows = [
            {"name": name, "marked": int(mask.sum())}
            for name, mask in zip(names, masks, strict=True)
        ]
        shown = {names[row]: row for row in range(min(_SHOWN, len(names)))}
    figure = []
    for row, name in enumerate(names):
        mask = masks[row].numpy()
        one = case(split, row, name, {"Prediction": mask}, truth=truth)
        buffer = io.BytesIO()
        Image.fromarray(mask.astype(np.uint8) * 255).save(buffer, format="PNG")
        write_atomically(home / "masks" / f"{name}.png", buffer.getvalue())
        write_atomically(home / "overlays" / f"{name}.png", outlined(one))
    for title, row in shown.items():
        label = f"{title}\n{names[row]}" if truth else title
        predictions = {"Prediction": masks[row].numpy()}
        figure.append(case(split, row, label, predictions, truth=truth))
    if figure:
        buffer = io.BytesIO()
        draw_cases(figure, buffer)
        write_atomically(home / "cases.png", buffer.getvalue())
    return rows
