"""Files that a prediction writes, and those of an earlier one that it replaces."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from znorm.lab import csvfiles
from znorm.lab.datasets.dataset import RESERVED
from znorm.lab.datasets.files import inside
from znorm.lab.datasets.own.reading import VOLUMES, facts_of, kind_of, volume_of
from znorm.lab.errors import DataError
from znorm.lab.metrics.segmentation import Counts
from znorm.lab.prediction.pictures import Pictures
from znorm.lab.prediction.predicted import Predicted, PredictedMask
from znorm.lab.reporting.overlays import Case, draw_cases, notable, outlined
from znorm.lab.runs.files import read_file, write_atomically

__all__ = [
    "STARTED",
    "check_free",
    "class_rows",
    "files_of",
    "files_of_earlier",
    "names_of_earlier",
    "remove",
    "remove_earlier",
    "write_masks",
]

Pixels = npt.NDArray[Any]

# The names of what a call is about to write, while it does: what it leaves if it is stopped.
STARTED = "predictions.started.csv"
# Columns of a table of masks, without truth and with it; by them a table is known for one of ours.
# Where several things are marked a row is one of them.
_COUNTS = [field.name for field in fields(Counts)]
_DISTANCES = ["hausdorff", "hausdorff95", "hausdorff_rows"]
_OF_MASKS = (
    ["name", "marked"],
    ["name", "label", "marked"],
    ["name", "patient", *_COUNTS, *_DISTANCES, "dice"],
    ["name", "patient", "label", *_COUNTS, *_DISTANCES, "dice"],
)
# Rows of the figure where no truth tells which cases are the best and the worst.
_SHOWN = 3


def files_of(home: Path, pictures: Pictures) -> list[Path]:
    """The files that are written of the masks of pictures."""
    places = [place for row in range(len(pictures.names)) for place in _places(home, pictures, row)]
    return [*dict.fromkeys(places), home / "cases.png"] if places else []


def files_of_earlier(home: Path, names: Sequence[str]) -> list[Path]:
    """The files that earlier calls can have written of masks with these names."""
    places = [home / kind / file for name in names for kind, file in _earlier(name)]
    return [*dict.fromkeys(places), home / "cases.png"] if names else []


def _earlier(name: str) -> list[tuple[str, str]]:
    """The folder and the name of each file that an earlier call can have written of a mask."""
    places = [("masks", f"{name}.png"), ("overlays", f"{name}.png")]
    if (found := re.fullmatch(r"(.+)#\d{3,}", name)) is not None:
        places.append(("masks", f"{found[1]}.nii.gz"))
    return places


def _places(home: Path, pictures: Pictures, row: int) -> list[Path]:
    """The files of a picture's mask, which of a slice is the volume's, and of its overlay."""
    name = mask = pictures.names[row]
    ending = "png"
    if pictures.sources and kind_of(pictures.sources[row].path) in VOLUMES:
        mask, ending = name.rpartition("#")[0], "nii.gz"
    return [home / "masks" / f"{mask}.{ending}", home / "overlays" / f"{name}.png"]


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
        elif columns in _OF_MASKS and path.name != STARTED:
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
    for kind, file in (place for name in names for place in _earlier(name)):
        if not (home / kind).is_symlink():
            with suppress(DataError, OSError, ValueError):
                inside(home / kind, file).unlink(missing_ok=True)
    if names:
        remove(home / "cases.png")


def remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{path}: cannot be removed ({error.strerror or error})") from None


def class_rows(
    pictures: Pictures, shares: Tensor, classes: Sequence[str], threshold: float
) -> list[dict[str, Any]]:
    """The table of classes: a row an image, with the share of each class.

    Of two classes the second is predicted where its share is above the threshold.
    """
    rows = []
    for row, name in enumerate(pictures.names):
        line: dict[str, Any] = {"name": name}
        if pictures.truth:
            line["truth"] = classes[int(pictures.split.targets[row])]
        number = int(shares[row].argmax())
        if len(classes) == 2 and threshold != 0.5:
            number = int(shares[row, 1] > threshold)
        line["predicted"] = classes[number]
        rows.append({**line, **dict(zip(classes, shares[row].tolist(), strict=True))})
    return rows


def write_masks(
    home: Path, pictures: Pictures, predicted: Predicted, labels: Sequence[str]
) -> list[dict[str, Any]]:
    """Write the pictures of all masks; their rows in the table come back.

    Parameters
    ----------
    home : Path
    pictures : Pictures
    predicted : Predicted
    labels : sequence of str
        The names of what is marked, where there are several.
    """
    rows: list[dict[str, Any]] = []
    scores: list[float] = []
    present: list[bool] = []
    volume: list[Pixels] = []
    for row, name in enumerate(pictures.names):
        one = predicted[row]
        if one.truth is not None:
            cases = predicted.cases(row)
            of_label = [part.dice().tolist()[0] for part in cases.by_label().values()]
            rows += [
                {**line, "dice": score} for line, score in zip(cases.rows(), of_label, strict=True)
            ]
            scores.append(float(cases.dice()))
            present.append(bool(cases.target_found))
        elif labels:
            rows += [
                {"name": name, "label": label, "marked": int((one.mask == number).sum())}
                for number, label in enumerate(labels, 1)
            ]
        else:
            rows.append({"name": name, "marked": int(one.mask.sum())})
        values = _values(one.mask, pictures)
        source = pictures.sources[row] if pictures.sources else None
        mask_at, overlay_at = _places(home, pictures, row)
        if source is not None and kind_of(source.path) in VOLUMES:
            # Of one thing 1, as such volumes have it; a picture of 1 would be black.
            volume.append(values if labels else (values > 0).astype(np.uint8))
            if len(volume) == facts_of(source.path).slices:
                write_atomically(mask_at, volume_of(source.path, volume))
                volume = []
        else:
            write_atomically(mask_at, _png(values))
        write_atomically(overlay_at, outlined(_case(name, one)))
    shown = {pictures.names[row]: row for row in range(min(_SHOWN, len(pictures.names)))}
    if scores:
        notable_ = notable(scores, present)
        shown = {f"{title}\n{pictures.names[row]}": row for title, row in notable_.items()}
    if shown:
        buffer = io.BytesIO()
        figure = [_case(title, predicted[row]) for title, row in shown.items()]
        draw_cases(figure, buffer, labels)
        write_atomically(home / "cases.png", buffer.getvalue())
    return rows


def _case(title: str, one: PredictedMask) -> Case:
    truth = None if one.truth is None else one.truth.numpy()
    return Case(title, one.image, truth, {"Prediction": one.mask.numpy()})


def _values(mask: Tensor, pictures: Pictures) -> Pixels:
    """A mask by the values that the user's own masks have; of one thing 255."""
    rule = pictures.rule
    if rule is None or rule.labels is None:
        black_and_white: Pixels = mask.numpy().astype(np.uint8) * np.uint8(255)
        return black_and_white
    values = np.array([0, *rule.labels.values()])
    kind = np.uint8 if values.max() < 256 else np.uint16
    own: Pixels = values.astype(kind)[mask.numpy().astype(np.intp)]
    return own


def _png(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
