"""Archives that would write outside of the folder they are unpacked into."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from znorm.lab.datasets.download import unpack
from znorm.lab.errors import DataError


def entry(name: str, link: str | None = None, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    """A file of 4 bytes, or a link."""
    info = tarfile.TarInfo(name)
    if link is None:
        info.size = 4
    else:
        info.type, info.linkname = kind, link
    return info


def too_long_to_resolve() -> list[tarfile.TarInfo]:
    """Links whose place is longer than the system resolves, so that a filter cannot follow them."""
    name, steps, path, entries = "d" * 247, "abcdefghijklmnop", "", []
    for step in steps:
        folder = tarfile.TarInfo(os.path.join(path, name))
        folder.type = tarfile.DIRTYPE
        entries += [folder, entry(os.path.join(path, step), name)]
        path = os.path.join(path, name)
    deep = os.path.join("/".join(steps), "l" * 254)
    entries.append(entry(deep, "../" * len(steps)))
    entries.append(entry("escape", f"{deep}/../../outside"))
    return [*entries, entry("escape/evil")]


def archive(path: Path, entries: Iterable[tarfile.TarInfo]) -> None:
    with tarfile.open(path, "w:gz") as file:
        for info in entries:
            file.addfile(info, io.BytesIO(b"evil") if info.isreg() else None)


@pytest.mark.parametrize(
    "entries",
    [
        [entry("../outside/evil")],
        [entry("deeper/../../outside/evil")],
        [entry("link", "../outside"), entry("link/evil")],
        [entry("link", "{outside}"), entry("link/evil")],
        [entry("link", "../../outside/evil", tarfile.LNKTYPE), entry("link")],
        [entry("a", "b"), entry("b")],
        too_long_to_resolve(),
    ],
    ids=["up", "down-up", "link-up", "link-absolute", "hard-link", "inner-link", "long-links"],
)
def test_an_archive_writes_nothing_outside_of_its_folder(
    tmp_path: Path, entries: list[tarfile.TarInfo]
) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "set"
    outside.mkdir()
    folder.mkdir()
    for info in entries:
        info.linkname = info.linkname.replace("{outside}", str(outside))
    archive(folder / "set.tar.gz", [entry("good"), *entries])
    with pytest.raises(DataError, match=r"set\.tar\.gz: cannot be unpacked \(.*download it again"):
        unpack(folder / "set.tar.gz", folder)
    assert not list(outside.iterdir())
    # Whole or not at all: not even what comes before it.
    assert [path.name for path in folder.iterdir()] == ["set.tar.gz"]


def test_an_absolute_name_in_an_archive_is_below_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    archive(folder / "set.tar.gz", [entry(f"{tmp_path}/evil")])
    unpack(folder / "set.tar.gz", folder)
    assert not (tmp_path / "evil").exists()
    assert Path(f"{folder}{tmp_path}/evil").read_bytes() == b"evil"


def test_an_archive_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    archive(tmp_path / "set.tar.gz", [entry("d" * 200 + "/" + "f" * 300)])
    with pytest.raises(DataError, match=r"cannot be unpacked \(File name too long\) into"):
        unpack(tmp_path / "set.tar.gz", tmp_path)
