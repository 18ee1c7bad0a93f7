"""Both layouts of PatchCamelyon, on files written in exactly the official structure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from znorm.lab.datasets import decoded, patchcamelyon
from znorm.lab.errors import ConfigurationError, DataError

COUNTS = {"train": 40, "valid": 10, "test": 12}


def write_h5(root: Path) -> dict[str, tuple[Any, Any]]:
    folder = root / "pcam"
    folder.mkdir(parents=True)
    written = {}
    for seed, (part, count) in enumerate(COUNTS.items()):
        random = np.random.default_rng(seed)
        images = random.integers(0, 256, (count, 96, 96, 3), dtype=np.uint8)
        labels = (np.arange(count) % 2).astype(np.uint8)
        for kind, array in (("x", images), ("y", labels.reshape(count, 1, 1, 1))):
            with h5py.File(folder / f"camelyonpatch_level_2_split_{part}_{kind}.h5", "w") as file:
                file.create_dataset(kind, data=array, chunks=True, compression="gzip")
        written[part] = images, labels
    return written


def write_kaggle(root: Path, count: int = 50) -> dict[str, tuple[Any, int]]:
    folder = root / "pcam" / "train"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    written = {}
    for number in range(count):
        name = f"{random.integers(0, 2**63):040x}"
        pixels = random.integers(0, 256, (96, 96, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.tif")
        written[name] = pixels, number % 2
    lines = [f"{name},{label}" for name, (_, label) in written.items()]
    (root / "pcam" / "train_labels.csv").write_text("\n".join(["id,label", *lines]) + "\n")
    return written


@pytest.mark.parametrize("in_memory", [True, False])
def test_h5_parts_are_the_official_ones(
    data_root: Path, in_memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = write_h5(data_root)
    if not in_memory:
        monkeypatch.setattr(decoded, "IN_MEMORY", 0)
    assert patchcamelyon.resolve({}) == {"layout": "h5", "validation": None}
    dataset = patchcamelyon.load("h5", None)
    for part, held in (
        ("train", dataset.train),
        ("valid", dataset.validation),
        ("test", dataset.test),
    ):
        images, labels = written[part]
        assert held.mapped is not in_memory
        assert np.array_equal(held.images.permute(0, 2, 3, 1).numpy(), images)
        assert held.targets.tolist() == labels.tolist()
    assert "train 40 of 262,144" in dataset.notes[0]
    mean, std = dataset.statistics
    pixels = written["train"][0].astype(np.float64)
    assert mean.tolist() == pytest.approx(pixels.mean((0, 1, 2)).tolist(), rel=1e-6)
    assert std.tolist() == pytest.approx(pixels.std((0, 1, 2)).tolist(), rel=1e-6)


@pytest.mark.parametrize("in_memory", [True, False])
def test_the_kaggle_edition_has_a_fixed_fifth_for_test(
    data_root: Path, in_memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = write_kaggle(data_root)
    if not in_memory:
        monkeypatch.setattr(decoded, "IN_MEMORY", 0)
    assert patchcamelyon.resolve({}) == {"layout": "kaggle", "validation": 0.15}
    dataset = patchcamelyon.load("kaggle", 0.15)
    parts = (dataset.train, dataset.validation, dataset.test)
    assert [part.class_counts(2) for part in parts] == [[17, 17], [3, 3], [5, 5]]
    seen: list[str] = []
    for part in parts:
        assert part.mapped is not in_memory
        for image, target, name in zip(part.images, part.targets, part.names, strict=True):
            pixels, label = written[name]
            assert np.array_equal(image.permute(1, 2, 0).numpy(), pixels)
            assert int(target) == label
            seen.append(name)
    assert sorted(seen) == sorted(written)
    # Another share for validation leaves the test part as it is.
    assert patchcamelyon.load("kaggle", 0.4).test.names == dataset.test.names
    assert "Part of PatchCamelyon: 50 of 220,025 images." in dataset.notes


def test_which_layout_is_read_can_be_said(data_root: Path) -> None:
    write_h5(data_root)
    with pytest.raises(ConfigurationError, match="expected h5 or kaggle, found 'zip'"):
        patchcamelyon.resolve({"layout": "zip"})
    with pytest.raises(ConfigurationError, match="has a validation part of its own"):
        patchcamelyon.resolve({"validation": 0.2})
    with pytest.raises(DataError, match="patchcamelyon: no data in"):
        patchcamelyon.resolve({"layout": "kaggle"})


def test_h5_files_that_are_wrong_are_named(data_root: Path) -> None:
    write_h5(data_root)
    folder = data_root / "pcam"
    images, labels = (folder / f"camelyonpatch_level_2_split_train_{k}.h5" for k in "xy")
    whole = images.read_bytes()
    images.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"train_x\.h5: expected an h5 file with the array 'x'"):
        patchcamelyon.load("h5", None)
    images.write_bytes(b"<html>quota exceeded</html>")
    with pytest.raises(DataError, match=r"train_x\.h5: expected a data file, found a web page"):
        patchcamelyon.load("h5", None)
    images.write_bytes(whole)
    with h5py.File(labels, "w") as file:
        file["y"] = np.full((40, 1, 1, 1), 2, np.uint8)
    with pytest.raises(DataError, match=r"train_y\.h5: expected one label of 0 or 1"):
        patchcamelyon.load("h5", None)
    with h5py.File(labels, "w") as file:
        file["y"] = 3
    with pytest.raises(DataError, match=r"train_y\.h5: expected an h5 file with the array 'y'"):
        patchcamelyon.load("h5", None)
    with h5py.File(labels, "w") as file:
        file["y"] = np.zeros((39, 1, 1, 1), np.uint8)
    with pytest.raises(DataError, match=r"train_x\.h5: expected images \(39, 96, 96, 3\)"):
        patchcamelyon.load("h5", None)


def test_a_kaggle_edition_that_is_wrong_is_named_and_leaves_nothing_half_written(
    data_root: Path,
) -> None:
    names = list(write_kaggle(data_root))
    picture = data_root / "pcam" / "train" / f"{names[0]}.tif"
    table = data_root / "pcam" / "train_labels.csv"
    whole, lines = picture.read_bytes(), table.read_text()
    picture.write_bytes(whole[:5000])
    with pytest.raises(DataError, match=rf"{names[0]}\.tif: expected a picture"):
        patchcamelyon.load("kaggle", 0.15)
    Image.new("RGB", (95, 96)).save(picture)
    with pytest.raises(DataError, match="expected 96x96 pixels, found 96x95"):
        patchcamelyon.load("kaggle", 0.15)
    Image.new("L", (96, 96)).save(picture)
    with pytest.raises(DataError, match="expected a picture of mode RGB, found L"):
        patchcamelyon.load("kaggle", 0.15)
    picture.unlink()
    with pytest.raises(DataError, match=rf"{names[0]}\.tif: missing; train_labels"):
        patchcamelyon.load("kaggle", 0.15)
    assert not list((data_root / ".decoded").iterdir())
    picture.write_bytes(whole)
    for content, message in [
        (lines.replace("id,label", "name,label"), "expected the columns id,label"),
        (lines.replace(",0\n", ",2\n", 1), "line 2: expected an id and a label of 0 or 1"),
        (lines + lines.splitlines()[1] + "\n", "line 52: the id .* is there twice"),
        ("<!doctype html>", "found a web page"),
    ]:
        table.write_text(content)
        with pytest.raises(DataError, match=message):
            patchcamelyon.load("kaggle", 0.15)


def test_small_and_incomplete_h5_editions_are_parts(data_root: Path) -> None:
    from znorm.lab import data

    write_h5(data_root)
    (row,) = data.verify(["patchcamelyon"])
    assert (row["state"], row["images"]["train"], row["problems"]) == ("part", 40, [])
    (data_root / "pcam" / "camelyonpatch_level_2_split_test_y.h5").unlink()
    (row,) = data.verify(["patchcamelyon"])
    assert "these are not here: ['camelyonpatch_level_2_split_test_y.h5']" in row["problems"][0]


@pytest.mark.parametrize(
    "written_as",
    [
        lambda text: "\ufeff" + text,
        lambda text: text.replace(",", " , "),
        lambda text: text.replace("\n", " \n "),
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("\n", "\r"),
        lambda text: text.replace("\n", "\n\n"),
        lambda text: text.rstrip("\n"),
        lambda text: "".join('"{}" , "{}"\n'.format(*line.split(",")) for line in text.split()),
    ],
    ids=["bom", "commas", "spaces", "windows", "old-mac", "blank-lines", "no-end", "quoted"],
)
def test_train_labels_are_read_however_a_program_saved_them(
    data_root: Path, written_as: Callable[[str], str]
) -> None:
    write_kaggle(data_root, 10)
    expected = patchcamelyon.load("kaggle", 0.15)
    table = data_root / "pcam" / "train_labels.csv"
    table.write_bytes(written_as(table.read_text()).encode())
    dataset = patchcamelyon.load("kaggle", 0.15)
    for one, other in ((dataset.train, expected.train), (dataset.test, expected.test)):
        assert one.names == other.names
        assert one.targets.equal(other.targets)


@pytest.mark.parametrize("ending", ["TIF", "tiff", "Tiff"])
def test_patches_are_found_by_other_spellings_of_their_ending(data_root: Path, ending: str) -> None:
    names = list(write_kaggle(data_root, 10))
    expected = patchcamelyon.load("kaggle", 0.0)
    train = data_root / "pcam" / "train"
    for name in names[::2]:
        (train / f"{name}.tif").rename(train / f"{name}.{ending}")
    (train / "notes.txt").write_text("of the user")
    dataset = patchcamelyon.load("kaggle", 0.0)
    assert dataset.train.names == expected.train.names
    assert dataset.train.images.equal(expected.train.images)
    (train / f"{names[0]}.tif").write_bytes((train / f"{names[0]}.{ending}").read_bytes())
    with pytest.raises(DataError, match=rf"{names[0]}\.[Tt].* beside it has the same name"):
        patchcamelyon.load("kaggle", 0.0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../../../secret", "expected an id, found '../../../secret'"),
        ("{root}/secret", "expected an id, found '/.*'; it is the name of a patch"),
        ("deeper/secret", "expected an id, found 'deeper/secret'"),
        ("..\\secret", "expected an id, found"),
        ("", "expected an id, found ''"),
        ("a\0b", r"/train: 'a\\x00b\.tif' is no name of a file"),
        ("a" * 252, "/train: 'a*'... is a name of 256 bytes; files have 255 at most"),
        ("a" * 100_000, "/train: 'a{60}'... is a name of 100004 bytes"),
        ("linked", r"/train: 'linked\.tif' leads out of it, to .*/secret\.tif"),
    ],
)
def test_an_id_that_leads_out_of_the_set_is_refused_with_its_line(
    data_root: Path, name: str, message: str
) -> None:
    write_kaggle(data_root, 10)
    train = data_root / "pcam" / "train"
    (train / "deeper").mkdir()
    for place in (data_root, train / "deeper"):
        Image.new("RGB", (96, 96)).save(place / "secret.tif")
    (train / "linked.tif").symlink_to(data_root / "secret.tif")
    table = data_root / "pcam" / "train_labels.csv"
    table.write_text(table.read_text() + f"{name.format(root=data_root)},1\n")
    with pytest.raises(DataError, match=rf"^{table}: line 12: .*{message}") as caught:
        patchcamelyon.load("kaggle", 0.15)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.mkdir(), "expected a file, found a folder; move it away"),
        (lambda path: path.symlink_to("nowhere.tif"), "a link to nowhere.tif, which is not there"),
        (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
        (lambda path: path.write_bytes(b""), "found an empty file"),
        (lambda path: path.write_bytes(b"a text"), "its content is of no known format"),
        (lambda path: None, r"missing; train_labels\.csv lists it in line 2\. Unpack"),
    ],
)
def test_a_patch_that_is_no_file_is_named_in_one_line(
    data_root: Path, make: Callable[[Path], None], message: str
) -> None:
    name = next(iter(write_kaggle(data_root, 10)))
    patch = data_root / "pcam" / "train" / f"{name}.tif"
    patch.unlink()
    make(patch)
    with pytest.raises(DataError, match=rf"{patch}: .*{message}") as caught:
        patchcamelyon.load("kaggle", 0.15)
    assert "\n" not in str(caught.value)


def test_links_within_the_set_are_followed_and_the_folder_may_be_one(data_root: Path) -> None:
    names = list(write_kaggle(data_root, 10))
    expected = patchcamelyon.load("kaggle", 0.0)
    train, elsewhere = data_root / "pcam" / "train", data_root / "elsewhere"
    train.rename(elsewhere)
    train.symlink_to(elsewhere)
    (elsewhere / f"{names[0]}.tif").rename(elsewhere / "first.tif")
    (elsewhere / f"{names[0]}.tif").symlink_to("first.tif")
    assert patchcamelyon.load("kaggle", 0.0).train.images.equal(expected.train.images)


def test_train_labels_that_are_no_table_are_named(data_root: Path) -> None:
    write_kaggle(data_root, 10)
    table = data_root / "pcam" / "train_labels.csv"
    text = table.read_text()
    for content, message in [
        (b"", r"expected the columns id,label, found ''"),
        (text.replace(",", ";").encode(), "expected the columns id,label, found 'id;label'"),
        (text.encode("utf-16"), "cannot be read .*codec can't decode"),
        (text.replace(",0", ",0,more", 1).encode(), "line 2: expected an id and a label of 0 or 1"),
        (text.replace("\n", '\n"', 1).encode(), "expected an id and a label of 0 or 1"),
        (text.encode() + b'"' + b"a" * 200_000, "field larger than field limit"),
    ]:
        table.write_bytes(content)
        with pytest.raises(DataError, match=rf"{table}: .*{message}") as caught:
            patchcamelyon.load("kaggle", 0.15)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500
    table.unlink()
    table.mkdir()
    with pytest.raises(DataError, match=rf"{table}: expected a file, found a folder"):
        patchcamelyon.load("kaggle", 0.15)


@pytest.mark.parametrize("kind", ["link", "storage", "virtual", "soft"])
def test_an_h5_file_whose_images_lie_in_another_file_is_refused(data_root: Path, kind: str) -> None:
    write_h5(data_root)
    path = data_root / "pcam" / "camelyonpatch_level_2_split_train_x.h5"
    secret = data_root / "secret.h5"
    path.rename(secret)
    shape = (COUNTS["train"], 96, 96, 3)
    with h5py.File(path, "w") as file:
        if kind == "link":
            file["x"] = h5py.ExternalLink("../secret.h5", "x")
        elif kind == "storage":
            file.create_dataset("x", shape, np.uint8, external=str(secret))
        elif kind == "virtual":
            layout = h5py.VirtualLayout(shape, np.uint8)
            layout[:] = h5py.VirtualSource(str(secret), "x", shape)
            file.create_virtual_dataset("x", layout)
        else:
            file["other"] = h5py.ExternalLink("../secret.h5", "x")
            file["x"] = h5py.SoftLink("/other")
    with pytest.raises(
        DataError, match=r"_train_x\.h5: expected the array 'x' in it, found a link"
    ):
        patchcamelyon.load("h5", None)


def test_an_h5_file_that_is_a_folder_is_named(data_root: Path) -> None:
    write_h5(data_root)
    path = data_root / "pcam" / "camelyonpatch_level_2_split_train_x.h5"
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match=r"_train_x\.h5: expected a file, found a folder"):
        patchcamelyon.load("h5", None)
