"""Files from mirrors: resumed where they stopped, verified before they count as there."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import IO, cast

from znorm.lab.datasets.files import refuse_page
from znorm.lab.datasets.source import Download
from znorm.lab.errors import DataError, DiskFullError, is_disk_full

__all__ = ["Progress", "digest_of", "fetch", "unpack"]

# (name, bytes there, bytes in all or None)
Progress = Callable[[str, int, int | None], None]

TIMEOUT = 60.0
BLOCK = 1 << 20


def digest_of(path: Path, kind: str) -> str:
    """``kind:hex`` of a file."""
    digest = hashlib.new(kind, usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return f"{kind}:{digest.hexdigest()}"


def fetch(download: Download, folder: Path, progress: Progress) -> Path:
    """Download a file into ``folder``, from the first mirror that gives the right one.

    What an earlier try left is gone on with. Until it is verified the file bears the ending
    ``.part``.

    Raises
    ------
    DataError
        If no mirror gave it, with what each of them answered.
    DiskFullError
        With the part that is there kept.
    """
    path = folder / download.name
    kind = download.digest.partition(":")[0]
    if path.exists() and digest_of(path, kind) == download.digest:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    problems = []
    for url in download.urls:
        try:
            _transfer(url, partial, download, progress)
            actual = digest_of(partial, kind)
            if actual != download.digest:
                refuse_page(partial, partial.read_bytes()[:512])
                raise DataError(f"expected {download.digest}, found {actual}")
            os.replace(partial, path)
            return path
        except OSError as error:
            if is_disk_full(error):
                raise DiskFullError(f"{partial}: no space left on the disk") from error
            # The reason alone, of a connection that failed; of an answer its number too.
            answered = isinstance(error, urllib.error.HTTPError)
            reason = error if answered else getattr(error, "reason", error)
            problems.append(f"{_host(url)}: {reason}")
        except (HTTPException, DataError) as error:
            # Whole, and wrong: another mirror must not go on with it.
            partial.unlink(missing_ok=True)
            problems.append(f"{_host(url)}: {error}")
    raise DataError(f"{download.name}: no mirror gave it ({'; '.join(map(str, problems))})")


def _host(url: str) -> str:
    return url.split("/")[2]


def _transfer(url: str, partial: Path, download: Download, progress: Progress) -> None:
    there = partial.stat().st_size if partial.exists() else 0
    if download.size is not None and there == download.size:
        return
    request = urllib.request.Request(url, headers={"User-Agent": "znorm"})
    if there:
        request.add_header("Range", f"bytes={there}-")
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and there:
            # Nothing is left to ask for: it is whole, which the digest will tell.
            return
        raise
    with answer:
        if "text/html" in answer.headers.get("Content-Type", ""):
            raise DataError("answered with a web page in place of the file")
        going_on = there > 0 and answer.status == 206
        length = answer.headers.get("Content-Length")
        total = int(length) + (there if going_on else 0) if length else download.size
        done = there if going_on else 0
        with open(partial, "ab" if going_on else "wb") as file:
            while block := answer.read(BLOCK):
                file.write(block)
                done += len(block)
                progress(download.name, done, total)
    if total is not None and done < total:
        raise OSError(f"stopped after {done} of {total} bytes; the same command goes on")


def unpack(path: Path, folder: Path) -> None:
    """Unpack a ``.tar.gz`` or ``.gz`` into ``folder``, whole or not at all, and remove it.

    Raises
    ------
    DataError
        If it cannot be unpacked, or would write outside of ``folder``.
    DiskFullError
    """
    try:
        if path.name.endswith(".tar.gz"):
            _unpack_tar(path, folder)
        else:
            target = folder / path.name.removesuffix(".gz")
            temporary = target.with_name(target.name + ".part")
            with gzip.open(path) as packed, open(temporary, "wb") as plain:
                shutil.copyfileobj(cast(IO[bytes], packed), plain, BLOCK)
            os.replace(temporary, target)
    except (tarfile.TarError, EOFError, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: cannot be unpacked ({error}); download it again") from None
    except OSError as error:
        if is_disk_full(error):
            raise DiskFullError(
                f"{folder}: no space left on the disk to unpack {path.name}"
            ) from error
        raise DataError(
            f"{path}: cannot be unpacked ({error.strerror or error}) into {folder}"
        ) from None
    path.unlink()


def _unpack_tar(path: Path, folder: Path) -> None:
    staging = folder / f".{path.name}.unpacked"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        with tarfile.open(path) as archive:
            archive.extractall(staging, filter=_without_links)
        for entry in sorted(staging.rglob("*")):
            if entry.is_file():
                target = folder / entry.relative_to(staging)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(entry, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _without_links(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
    """The members of an archive that are unpacked: files and folders within ``folder``.

    Python's own filter lets links pass that stay within, and is deceived about where they lead by
    paths longer than the system resolves (CVE-2025-4517). No set has links.
    """
    if member.issym() or member.islnk():
        raise tarfile.TarError(f"{member.name[:60]!r} in it is a link")
    return tarfile.data_filter(member, folder)
