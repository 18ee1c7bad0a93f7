"""The record that a page keeps of the files it was written from: which numbers they held then."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from znorm.lab.errors import DataError
from znorm.lab.runs.files import read_file
from znorm.lab.runs.folder import Run

__all__ = ["FILES", "record_of"]

# By what a record has of a run: the file that holds it.
FILES = {
    "spec": "spec.json",
    "result": "result.json",
    "epochs": "events.jsonl",
    "cases": "cases.csv",
}


def record_of(root: Path, runs: Iterable[Run]) -> dict[str, dict[str, str]]:
    """Digests of what the files of each run hold, by the run's folder and the keys of `FILES`.

    Of the numbers, not of the bytes: notes between the epochs, or other white space, change none.
    """
    return {_place(root, run): _digests(run) for run in runs}


def _place(root: Path, run: Run) -> str:
    inside = run.folder.is_relative_to(root)
    return (run.folder.relative_to(root) if inside else run.folder).as_posix()


def _digests(run: Run) -> dict[str, str]:
    content: dict[str, Any] = {
        "spec": run.spec.canonical(),
        "result": run.result,
        "epochs": run.history or None,
    }
    with suppress(FileNotFoundError, DataError):
        content["cases"] = read_file(run.folder / FILES["cases"], 1 << 30).hex()
    return {key: _digest(value) for key, value in content.items() if value is not None}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
