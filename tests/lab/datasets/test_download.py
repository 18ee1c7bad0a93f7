"""Downloads against a server of our own: mirrors, resumption, verification, what is said."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from znorm.lab import data
from znorm.lab.datasets.download import fetch, unpack
from znorm.lab.datasets.source import Download
from znorm.lab.errors import ConfigurationError, DataError
from znorm.lab.tasks import TASKS

CONTENT = bytes(range(256)) * 8000
GOOD = f"md5:{hashlib.md5(CONTENT).hexdigest()}"


class Handler(BaseHTTPRequestHandler):
    seen: list[tuple[str, str | None]] = []  # noqa: RUF012

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.seen.append((self.path, asked))
        if self.path == "/missing":
            self.send_error(404)
            return
        content, kind = CONTENT, "application/octet-stream"
        if self.path == "/page":
            content, kind = b"<!DOCTYPE html><html>quota exceeded</html>", "text/html"
        if self.path == "/disguised":
            content = b"<!DOCTYPE html><html>quota exceeded</html>"
        if self.path == "/other":
            content = CONTENT[::-1]
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if self.path == "/whole-only":
            start = 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        stop = len(content) // 2 if self.path == "/stops" and not start else len(content)
        self.wfile.write(content[start:stop])

    def log_message(self, *arguments: object) -> None: ...


@pytest.fixture
def server() -> Iterator[str]:
    Handler.seen.clear()
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()


def download(server: str, *paths: str, size: int | None = None) -> Download:
    return Download("file.bin", GOOD, size, tuple(server + path for path in paths))


def quiet(*_: object) -> None: ...


@pytest.mark.parametrize("bad", ["/missing", "/page", "/disguised", "/other"])
def test_the_next_mirror_is_asked_where_one_gives_something_else(
    server: str, tmp_path: Path, bad: str
) -> None:
    path = fetch(download(server, bad, "/good"), tmp_path, quiet)
    assert path.read_bytes() == CONTENT
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.bin"]


def test_what_is_there_and_right_is_not_asked_for(server: str, tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_bytes(CONTENT)
    fetch(download(server, "/good"), tmp_path, quiet)
    assert Handler.seen == []


@pytest.mark.parametrize("path", ["/good", "/whole-only"])
def test_a_part_is_gone_on_with_where_the_mirror_can(
    server: str, tmp_path: Path, path: str
) -> None:
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1000])
    told: list[tuple[int, int | None]] = []
    fetch(download(server, path), tmp_path, lambda _, done, total: told.append((done, total)))
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert Handler.seen == [(path, "bytes=1000-")]
    assert told[-1] == (len(CONTENT), len(CONTENT))


def test_a_transfer_that_stops_keeps_its_part_and_the_next_try_goes_on(
    server: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"no mirror gave it .*stopped after|IncompleteRead"):
        fetch(download(server, "/stops"), tmp_path, quiet)
    fetch(download(server, "/stops"), tmp_path, quiet)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_where_no_mirror_gives_it_each_answer_is_said(server: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        fetch(download(server, "/missing", "/page", "/other"), tmp_path, quiet)
    text = str(caught.value)
    assert "\n" not in text
    for words in ("404", "answered with a web page", f"expected {GOOD}, found md5:"):
        assert words in text
    assert not list(tmp_path.iterdir())
    with pytest.raises(DataError, match="no mirror gave it"):
        fetch(Download("f", GOOD, None, ("http://127.0.0.1:9/f",)), tmp_path, quiet)


def test_archives_are_unpacked_whole_and_removed(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        entry = tarfile.TarInfo("folder/a.bin")
        entry.size = 3
        archive.addfile(entry, io.BytesIO(b"abc"))
    (tmp_path / "set.tar.gz").write_bytes(buffer.getvalue())
    (tmp_path / "plain.h5.gz").write_bytes(gzip.compress(b"xyz"))
    for name in ("set.tar.gz", "plain.h5.gz"):
        unpack(tmp_path / name, tmp_path)
    assert (tmp_path / "folder" / "a.bin").read_bytes() == b"abc"
    assert (tmp_path / "plain.h5").read_bytes() == b"xyz"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder", "plain.h5"]
    (tmp_path / "cut.h5.gz").write_bytes(gzip.compress(b"xyz" * 100)[:-20])
    with pytest.raises(DataError, match=r"cut\.h5\.gz: cannot be unpacked"):
        unpack(tmp_path / "cut.h5.gz", tmp_path)


def test_get_says_what_to_put_where_if_no_mirror_answers(
    server: str, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = TASKS["cifar10"].data
    assert source.origin is not None
    offline = replace(source.origin, downloads=(download(server, "/missing"),))
    task = replace(TASKS["cifar10"], data=replace(source, origin=offline))
    monkeypatch.setitem(TASKS, "cifar10", task)
    with pytest.raises(DataError) as caught:
        data.get("cifar10")
    for words in ("404", "data_batch_1.bin", "znorm data verify cifar10"):
        assert words in str(caught.value)
    with pytest.raises(DataError, match=r"without a login; .*log in at https"):
        data.get("lgg_mri")
    with pytest.raises(ConfigurationError, match="unknown data set 'cifar'; did you mean cifar10"):
        data.get("cifar")
    assert data.get("phantom")[0]["state"] == "whole"


def test_addresses_are_https_and_digests_well_formed() -> None:
    lengths = {"md5": 32, "sha1": 40}
    origins = [origin for task in TASKS.values() if (origin := task.data.origin) is not None]
    assert len(origins) == 3
    for source in origins:
        for item in source.downloads:
            assert len(item.urls) >= 2
            assert all(url.startswith("https://") for url in item.urls)
        for digest in [*source.digests.values(), *(item.digest for item in source.downloads)]:
            kind, _, value = digest.partition(":")
            assert len(value) == lengths[kind]
            int(value, 16)
