"""Public data sets on this machine: what is there, fetched, checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from znorm.lab import tasks
from znorm.lab.datasets import Part, cifar10, lgg_mri, patchcamelyon
from znorm.lab.datasets.decoded import anew
from znorm.lab.datasets.download import Progress, digest_of, fetch, unpack
from znorm.lab.datasets.files import data_root
from znorm.lab.datasets.sources import SOURCES, missing
from znorm.lab.errors import ConfigurationError, DataError, DiskFullError
from znorm.lab.registry import lookup
from znorm.lab.spec import resolve

__all__ = ["get", "listing", "verify"]

BUILT_IN = {
    "pcam_mini": "1,914 pathology patches of 32x32 pixels, tumour or not (CC0)",
    "phantom": "synthetic slices of 64x64 pixels with blobs, drawn when asked for",
}


def listing() -> list[dict[str, Any]]:
    """Each set: what is there of it, where, how large. Files are counted, not read.

    Returns
    -------
    list of dict
        name, state ("built in", "whole", "part", "missing" or "wrong"), about, found, folder,
        bytes, licence, home.
    """
    rows = [
        {
            "name": name,
            "state": "built in",
            "about": about,
            "found": "",
            "folder": None,
            "bytes": 0,
            "licence": "",
            "home": "",
        }
        for name, about in BUILT_IN.items()
    ]
    for name, source in SOURCES.items():
        folder = data_root() / source.folder
        try:
            state, found = _STATES[name]()
        except DataError as error:
            state, found = "wrong", str(error)
        rows.append(
            {
                "name": name,
                "state": state,
                "about": source.about,
                "found": found,
                "folder": str(folder),
                "bytes": _bytes_in(folder),
                "licence": source.licence,
                "home": source.home,
            }
        )
    return rows


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _cifar10() -> tuple[str, str]:
    here = cifar10.parts_here()
    if not here:
        return "missing", ""
    test = here.get("test")
    whole = len(here) == 6 and test is not None and test.name in ("test_batch.bin", "test_batch")
    folders = all(path.is_dir() for path in here.values()) and len(here) == 2
    return (
        "whole" if whole or folders else "part",
        ", ".join(path.name for path in here.values()),
    )


_H5 = "the official h5 files"


def _patchcamelyon() -> tuple[str, str]:
    here = patchcamelyon.layouts_here()
    if not here:
        h5 = list(patchcamelyon.folder().glob("camelyonpatch_level_2_split_*.h5"))
        return ("part", f"{len(h5)} of the 6 official h5 files") if h5 else ("missing", "")
    if here[0] == "h5":
        return "whole", _H5
    images = len(patchcamelyon.patches_here())
    state = "whole" if images >= patchcamelyon.KAGGLE_IMAGES else "part"
    return state, f"{images:,} of the Kaggle edition's {patchcamelyon.KAGGLE_IMAGES:,} images"


def _lgg_mri() -> tuple[str, str]:
    here = lgg_mri.slices_here()
    if not here:
        return "missing", ""
    slices = sum(map(len, here.values()))
    whole = len(here) == lgg_mri.PATIENTS and slices == lgg_mri.SLICES
    found = f"{len(here)} of {lgg_mri.PATIENTS} patients, {slices:,} of {lgg_mri.SLICES:,} slices"
    return "whole" if whole else "part", found


_STATES: dict[str, Callable[[], tuple[str, str]]] = {
    "cifar10": _cifar10,
    "patchcamelyon": _patchcamelyon,
    "lgg_mri": _lgg_mri,
}


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
    known = [*BUILT_IN, *SOURCES]
    chosen = known if names is None else list(names)
    rows = []
    for name in chosen:
        lookup("data set", name, dict.fromkeys(known, 0))
        row = _verified(name)
        if names is not None or row["state"] != "missing":
            rows.append(row)
    return rows


def _verified(name: str) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": name,
        "state": "whole",
        "found": "",
        "images": {},
        "classes": {},
        "verified": [],
        "problems": [],
    }
    try:
        if name in SOURCES:
            row["state"], row["found"] = _STATES[name]()
            if row["state"] == "missing":
                row["problems"].append(str(missing(name)))
                return row
            row["verified"] = _check_digests(name)
        # What this process has read before is no word on what the files hold now.
        lgg_mri._decoded.cache_clear()
        with anew() as wrong:
            whole = _whole(name)
        for part, held in whole.items():
            row["images"][part] = len(held)
            row["classes"][part] = held.class_counts(2)
        official = tuple(patchcamelyon.H5_IMAGES.values())
        if row["found"] == _H5 and tuple(row["images"].values()) != official:
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


def _check_digests(name: str) -> list[str]:
    source = SOURCES[name]
    verified = []
    for relative, digest in source.digests.items():
        path = data_root() / source.folder / relative
        if not path.exists():
            continue
        found = digest_of(path, digest.partition(":")[0])
        if found != digest:
            raise DataError(
                f"{path}: expected {digest}, found {found}; it is not the official file"
            )
        verified.append(relative)
    return verified


def _whole(name: str) -> dict[str, Part]:
    """Every part of a set, read as its task reads it."""
    dataset = tasks.load(name, resolve({"task": name}).data)
    return {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}


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
    if name in BUILT_IN:
        return verify([name])
    source = lookup("data set", name, {**SOURCES, **dict.fromkeys(BUILT_IN)})
    assert source is not None
    folder = data_root() / source.folder
    if _STATES[name]()[0] != "whole":
        if not source.downloads:
            raise DataError(f"{name}: cannot be downloaded without a login; {missing(name)}")
        for download in source.downloads:
            if (folder / download.name.removesuffix(".gz")).exists():
                continue  # unpacked before
            try:
                unpack(fetch(download, folder, progress), folder)
            except DiskFullError:
                raise
            except DataError as error:
                raise DataError(f"{error}; {missing(name)}") from None
    return verify([name])
