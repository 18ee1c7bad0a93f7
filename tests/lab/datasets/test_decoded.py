from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from znorm.lab.datasets import decoded, phantom
from znorm.lab.datasets.decoded import decoded as decode
from znorm.lab.errors import DataError, DiskFullError


def test_pixels_are_decoded_once_and_anew_when_a_source_changes(tmp_path: Path) -> None:
    source = tmp_path / "a.tif"
    source.write_text("one")
    calls = []

    def fill(pixels: Any) -> None:
        calls.append(1)
        pixels[:] = len(calls)

    assert decode("set", [source], (2, 3), fill).tolist() == [[1] * 3] * 2
    assert decode("set", [source], (2, 3), fill).tolist() == [[1] * 3] * 2
    source.write_text("another")
    assert decode("set", [source], (2, 3), fill).tolist() == [[2] * 3] * 2
    # What was decoded before is of no more use.
    assert len(list((tmp_path / "data" / ".decoded").iterdir())) == 1


@pytest.mark.parametrize("in_memory", [True, False])
def test_pixels_that_changed_on_the_disk_are_decoded_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: bool
) -> None:
    if not in_memory:
        monkeypatch.setattr(decoded, "IN_MEMORY", 0)

    def fill(pixels: Any) -> None:
        pixels[:] = 7

    right = decode("set", [], (2, 3), fill).tolist()
    (path,) = (tmp_path / "data" / ".decoded").iterdir()
    for place in (0, 5, -1):
        content = bytearray(path.read_bytes())
        content[place] ^= 1
        path.write_bytes(content)
        assert decode("set", [], (2, 3), fill).tolist() == right == [[7] * 3] * 2
    path.write_bytes(bytes(6))  # as earlier versions left it, without a checksum
    assert decode("set", [], (2, 3), fill).tolist() == right


def test_a_user_without_a_home_folder_needs_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    assert decode("set", [], (0, 3), lambda pixels: None).shape == (0, 3)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ZNORM_DATA_DIR", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"file/\.decoded: cannot be written"):
        decode("set", [], (2, 3), lambda pixels: None)


def test_a_large_set_is_mapped_and_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "a.tif"
    source.write_text("")
    values = np.random.default_rng(0).integers(0, 256, (50, 4), dtype=np.uint8)

    def fill(pixels: Any) -> None:
        pixels[:] = values

    in_memory = decode("set", [source], (50, 4), fill)
    monkeypatch.setattr(decoded, "IN_MEMORY", 0)
    mapped = decode("set", [source], (50, 4), fill)
    assert mapped.equal(in_memory)
    mapped[0] = 0  # a private mapping: the file stays as it is
    assert decode("set", [source], (50, 4), fill).equal(in_memory)


def test_a_full_disk_is_said_and_nothing_half_written_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DiskFullError, match=r"GB are needed for decoded images"):
        decode("set", [], (2, 3), lambda pixels: None)
    assert not list((tmp_path / "data" / ".decoded").iterdir())


def test_a_data_folder_that_cannot_be_written_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ZNORM_DATA_DIR", str(tmp_path / "file"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    decode("set", [], (2, 3), lambda pixels: None)
    assert list((tmp_path / "home" / ".cache" / "znorm" / "decoded").iterdir())


def test_phantoms_are_the_same_each_time_and_called_synthetic() -> None:
    one, two = phantom.load(), phantom.load()
    assert one.train.images.equal(two.train.images)
    assert one.notes[0].startswith("Synthetic")
    assert [len(part) for part in (one.train, one.validation, one.test)] == [192, 48, 80]
    assert not set(one.train.patients) & set(one.test.patients)
    empty, marked = one.train.class_counts(2)
    assert (empty, marked) == (48, 144)
    for row in (one.train.targets.flatten(1).sum(1) > 0).nonzero().flatten()[:20].tolist():
        inside = one.train.targets[row].bool()
        pixels = one.train.images[row, 1].double()
        assert pixels[inside].mean() > pixels[~inside].mean() + 40
