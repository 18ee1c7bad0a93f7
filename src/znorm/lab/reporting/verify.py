"""The numbers of a report, worked out once more from the files of its runs."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import znorm
from znorm.lab.errors import DataError
from znorm.lab.metrics.scores import CLASS_SCORES
from znorm.lab.reporting.data_card import data_card
from znorm.lab.reporting.export import Packed, opened, pack, read_pack, unpack
from znorm.lab.reporting.page import Frame, render_page
from znorm.lab.reporting.page_text import PageText, numbers_in, read_page
from znorm.lab.reporting.record import FILES
from znorm.lab.reporting.report import asked_and_tuned
from znorm.lab.reporting.tables import images_of
from znorm.lab.runs.files import read_file
from znorm.lab.runs.folder import Run
from znorm.lab.runs.survey import Damaged, survey
from znorm.lab.tasks import TASKS
from znorm.lab.training.ending import final_metrics

__all__ = ["Verification", "verify_numbers"]

# Sums of floating-point numbers in another order differ in their last digits.
_ROUNDING = 1e-9
# A page says how a run that has not ended stands; files that were packed cannot tell.
_UNFINISHED = re.compile(r"\b(?:running|interrupted|waiting)\b")
_MADE_BY = re.compile(r"Made by znorm (\S+)\.")
_LARGEST_PAGE = 1 << 28


@dataclass(frozen=True)
class Verification:
    """The outcome of working out all numbers again.

    Parameters
    ----------
    checked : int
        The numbers that were compared.
    differing : tuple of str
        A line for each that differs: its place, what is there and what it was found to be.
    remarks : tuple of str
        What could not be compared, and why.
    """

    checked: int
    differing: tuple[str, ...]
    remarks: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """True where all agree."""
        return not self.differing


def verify_numbers(
    source: Path, page: Path | None, frame_of: Callable[[Path], Frame | None]
) -> Verification:
    """Work out every number of runs and of their page again, and compare.

    Parameters
    ----------
    source : Path
        A folder of runs, or the zip file that was exported from one.
    page : Path or None
        By default the ``report.html`` of the folder, if there is one.
    frame_of : callable (Path) -> Frame or None
        The larger work that the runs of a folder are a part of.

    Raises
    ------
    DataError
        If one of the two cannot be read, or there are no runs.
    """
    unread: Sequence[Damaged] = ()
    if source.is_dir():
        content, unread = pack(source)
        packed = opened(content, str(source))
        page = source / "report.html" if page is None and _has_page(source) else page
    else:
        packed = read_pack(source)
    shown = None if page is None else read_page(_page(page))
    count = _Count()
    for place in packed.changed:
        count.differs(f"{place}: not the file that was packed")
    count.remarks += [str(one.reason) for one in unread]
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        unpack(packed, root)
        runs, damaged = survey(root)
        if not runs:
            raise DataError(f"{source}: no runs in it that can be read")
        for other in damaged:
            count.differs(other.reason.replace(f"{root}/", ""))
        for run in runs:
            _check_run(count, root, run)
        if shown is not None:
            _check_page(count, packed, shown, _again(root, runs, frame_of(root)))
        else:
            count.remarks.append("no page was given: the files of the runs alone were compared")
    return Verification(count.checked, tuple(count.differing), tuple(count.remarks))


class _Count:
    """Numbers compared so far."""

    def __init__(self) -> None:
        self.checked = 0
        self.differing: list[str] = []
        self.remarks: list[str] = []

    def differs(self, line: str) -> None:
        self.differing.append(line)

    def compare(self, place: str, there: Any, found: Any) -> None:
        """Compare one number of a file with what it was found to be."""
        self.checked += 1
        both = isinstance(there, int | float) and isinstance(found, int | float)
        if not (both and math.isclose(there, found, rel_tol=_ROUNDING, abs_tol=_ROUNDING)):
            self.differs(f"{place}: {_said(there)} is there, {_said(found)} follows")


def _said(value: Any) -> str:
    return "nothing" if value is None else str(value)


def _has_page(folder: Path) -> bool:
    return (folder / "report.html").is_file()


def _page(path: Path) -> str:
    try:
        return read_file(path, _LARGEST_PAGE).decode(errors="replace")
    except FileNotFoundError:
        raise DataError(f"{path}: no such page; znorm report writes one") from None


def _again(root: Path, runs: Sequence[Run], frame: Frame | None) -> PageText:
    """The texts of the page that these runs have, without the images."""
    away = DataError("the images are not a part of what was packed")
    datasets = {run.spec.data_key: away for run in runs}
    question, tunings, unread = asked_and_tuned(root)
    page = render_page(
        root,
        runs,
        datasets,
        frame,
        images=False,
        damaged=unread,
        question=question,
        tunings=tunings,
    )
    return read_page(page)


def _check_run(count: _Count, root: Path, run: Run) -> None:
    """Work out a run's scores from its epochs, its cases and its counts of images."""
    name = run.folder.relative_to(root).as_posix()
    for place, there, found in (*_metrics(run), *_shares(root, run)):
        count.compare(f"{name}/{place}", there, found)


def _metrics(run: Run) -> Iterator[tuple[str, Any, Any]]:
    """Each metric of result.json, and what follows from events.jsonl and cases.csv."""
    if run.status != "done":
        return
    history, metrics = run.history, run.metrics
    cases = run.cases()
    scores = None if cases is None else cases.scores()
    if (of_classes := run.class_cases()) is not None:
        yield "cases.csv accuracy", metrics.get("test_accuracy"), of_classes.accuracy
    if len(history) == run.epochs:
        score, best = TASKS[run.spec.task].score, bool(run.spec.best_epoch)
        found = final_metrics(history, score, scores, best_epoch=best)
    else:
        found = {f"test_{key}": value for key, value in (scores or {}).items()}
        # A run without its epochs shows what its cases do not.
        metrics = {key: value for key, value in metrics.items() if key in found}
    for key in sorted({*metrics, *found}):
        yield f"result.json {key}", metrics.get(key), found.get(key)


def _shares(root: Path, run: Run) -> Iterator[tuple[str, float, float]]:
    """Each share of cases in events.jsonl, and the nearest one that whole cases can have.

    Sensitivity and specificity are shares of the cases of a class, and accuracy follows from both.
    """
    if TASKS[run.spec.task].output != "classes":
        return
    away = DataError("the images are not a part of what was packed")
    card = data_card(root, run.spec, away, images_of([run]))
    for entry in run.history:
        for split in ("validation", "test"):
            counts = card.images.get(split, ())
            if sum(counts):
                place = f"events.jsonl epoch {entry['epoch']}"
                yield from (
                    (f"{place} {key}", there, found)
                    for key, there, found in _of_counts(entry, split, counts)
                )


def _of_counts(
    entry: Mapping[str, Any], split: str, counts: Sequence[int]
) -> Iterator[tuple[str, float, float]]:
    right: list[int] = []
    if len(counts) == 2:
        for score, cases in (("specificity", counts[0]), ("sensitivity", counts[1])):
            key = f"{split}_{score}"
            if key in entry and cases:
                right.append(round(entry[key] * cases))
                yield key, entry[key], right[-1] / cases
    key, whole = f"{split}_{CLASS_SCORES['accuracy'].name}", sum(counts)
    if key in entry:
        known = len(right) == 2
        yield key, entry[key], (sum(right) if known else round(entry[key] * whole)) / whole


def _check_page(count: _Count, packed: Packed, shown: PageText, found: PageText) -> None:
    if shown.record is None:
        count.remarks.append(
            "the page keeps no record of its files, as those of earlier versions: what it shows "
            "is compared"
        )
    else:
        _check_record(count, shown.record, found.record or {})
    made_by = (_MADE_BY.fullmatch(text) for _, text in shown.texts)
    written = next((match[1] for match in made_by if match), packed.version)
    for version, what in ((packed.version, "packed"), (written, "the page was written")):
        if version != znorm.__version__:
            count.remarks.append(
                f"{what} by znorm {version}, worked out by {znorm.__version__}: where these differ "
                "in more than numbers, it is said below, too"
            )
    if shown.left_out:
        count.remarks.append(
            f"{shown.left_out} numbers of the page are of pictures, which were not packed"
        )
    theirs = [_plain(text) for _, text in shown.texts]
    mine = [_plain(text) for _, text in found.texts]
    count.checked += sum(len(numbers_in(text)) for text in theirs)
    for kind, a, b, c, d in SequenceMatcher(None, theirs, mine, autojunk=False).get_opcodes():
        if kind == "equal":
            continue
        for number in range(max(b - a, d - c)):
            there = shown.texts[a + number] if a + number < b else None
            follows = found.texts[c + number] if c + number < d else None
            place = (there or follows or ("", ""))[0] or "at the top"
            count.differs(f"page, {place}: {_cut(there)} is there, {_cut(follows)} follows")


def _plain(text: str) -> str:
    return _UNFINISHED.sub("unfinished", _MADE_BY.sub("", text))


def _cut(one: tuple[str, str] | None) -> str:
    if one is None:
        return "nothing"
    text = one[1]
    return repr(text if len(text) <= 120 else f"{text[:117]}...")


def _check_record(
    count: _Count, shown: Mapping[str, Mapping[str, str]], found: Mapping[str, Mapping[str, str]]
) -> None:
    """Compare what the page was written from with what the files hold now."""
    for name in sorted({*shown, *found}):
        if name not in found or name not in shown:
            has = "the page has it, the files do not" if name in shown else "not on the page"
            count.differs(f"{name}: {has}")
            continue
        for key, file in FILES.items():
            count.checked += key in shown[name]
            if shown[name].get(key) != found[name].get(key):
                count.differs(f"{name}/{file}: not what the page was written from")
