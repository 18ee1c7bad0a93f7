"""The verbs on data sets: list what is on this machine, fetch and check it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from znorm.lab import tasks
from znorm.lab.datasets import Dataset, DataSource, Origin
from znorm.lab.datasets.decoded import anew
from znorm.lab.datasets.download import Progress, digest_of, fetch, unpack
from znorm.lab.errors import ConfigurationError, DataError, DiskFullError
from znorm.lab.registry import lookup
from znorm.lab.spec import resolve
from znorm.lab.tasks import sets

__all__ = ["get", "listing", "verify"]


def listing() -> list[dict[str, Any]]:
    """Each set: what is there of it, where, how large. Files are counted, not read.

    Returns
    -------
    list of dict
        name, state ("built in", "whole", "part", "missing" or "wrong"), about, found, folder,
        bytes, licence, home.

    Examples
    --------
    >>> from znorm.lab import data
    >>> [row["name"] for row in data.listing() if row["state"] == "built in"]
    ['pcam_mini', 'phantom']
    """
    return [_listed(task.data) for task in sets().values()]


def _listed(source: DataSource) -> dict[str, Any]:
    row = {
        "name": source.name,
        "state": "built in",
        "about": source.about,
        "found": "",
        "folder": None,
        "bytes": 0,
        "licence": "",
        "home": "",
    }
    origin = source.origin
    if origin is None:
        return row
    try:
        row["state"], row["found"] = source.state()
    except DataError as error:
        row["state"], row["found"] = "wrong", str(error)
    row["folder"], row["bytes"] = str(origin.path), _bytes_in(origin.path)
    row["licence"], row["home"] = origin.licence, origin.home
    return row


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def verify(names: Iterable[str] | None = None) -> list[dict[str, Any]]:
    """Check sets in depth: hashes where they are known, then every image and label is read.

    Images are decoded anew, whatever was decoded before.

    Parameters
    ----------
    names : iterable of str, optional
        By default every set of which something is there.

    Returns
    -------
    list of dict
        name, state ("whole", "part", "missing" or "wrong"), images and classes by part,
        verified (files whose hash is the known one), problems.

    Raises
    ------
    ConfigurationError
        For an unknown name.
    """
    rows = []
    for name in sets() if names is None else names:
        row = _verified(lookup("data set", name, sets()).data)
        if names is not None or row["state"] != "missing":
            rows.append(row)
    return rows


def _verified(source: DataSource) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": source.name,
        "state": "whole",
        "found": "",
        "images": {},
        "classes": {},
        "verified": [],
        "problems": [],
    }
    try:
        if source.origin is not None:
            row["state"], row["found"] = source.state()
            if row["state"] == "missing":
                row["problems"].append(str(source.missing()))
                return row
            row["verified"] = _check_digests(source.origin)
        # What this process has read before is no word on what the files hold now.
        source.forget()
        with anew() as wrong:
            dataset = _read(source.name)
        for name in ("train", "validation", "test"):
            split = getattr(dataset, name)
            row["images"][name] = len(split)
            row["classes"][name] = split.class_counts(2)
        if not source.is_whole(dataset):
            row["state"] = "part"
        if wrong:
            row["found"] += f"; {', '.join(wrong)} held other pixels than the files: decoded anew"
    except ConfigurationError as error:
        # Too little for a training and a test part is a part of a set, not a wrong one.
        row["found"] = f"{row['found']}; {error}"
    except DataError as error:
        row["state"] = "wrong"
        row["problems"].append(str(error))
    return row


def _check_digests(origin: Origin) -> list[str]:
    verified = []
    for relative, digest in origin.digests.items():
        path = origin.path / relative
        if not path.exists():
            continue
        actual = digest_of(path, digest.partition(":")[0])
        if actual != digest:
            raise DataError(
                f"{path}: expected {digest}, found {actual}; it is not the official file"
            )
        verified.append(relative)
    return verified


def _read(name: str) -> Dataset:
    """The whole set, as its task reads it."""
    return tasks.load(name, resolve({"task": name}).data)


def get(name: str, progress: Progress = lambda *_: None) -> list[dict[str, Any]]:
    """Download a set, verify it, and say what is there.

    Parameters
    ----------
    name : str
    progress : callable (file, bytes, bytes in all or None)

    Returns
    -------
    list of dict
        As of :func:`verify`.

    Raises
    ------
    ConfigurationError
        For an unknown name.
    DataError
        If the set stands behind a login, or no mirror gave it: with what to put where.
    DiskFullError
    """
    source = lookup("data set", name, sets()).data
    origin = source.origin
    if origin is not None and source.state().state != "whole":
        folder = origin.path
        if not origin.downloads:
            raise DataError(f"{name}: cannot be downloaded without a login; {source.missing()}")
        for download in origin.downloads:
            if (folder / download.name.removesuffix(".gz")).exists():
                continue  # unpacked before
            try:
                unpack(fetch(download, folder, progress), folder)
            except DiskFullError:
                raise
            except DataError as error:
                raise DataError(f"{error}; {source.missing()}") from None
    return verify([name])
