"""The three layouts of CIFAR-10, on files written in exactly the official structure."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from znorm.lab.datasets import cifar10
from znorm.lab.errors import ConfigurationError, DataError

ROWS = 10_000


def batch(seed: int) -> tuple[Any, Any]:
    random = np.random.default_rng(seed)
    labels = random.permutation(np.repeat(np.arange(10), ROWS // 10))
    return random.integers(0, 256, (ROWS, 3072), dtype=np.uint8), labels


def write_binary(root: Path, names: list[str]) -> Path:
    folder = root / "cifar10" / "cifar-10-batches-bin"
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(names):
        images, labels = batch(seed)
        rows = np.concatenate([labels[:, None].astype(np.uint8), images], axis=1)
        (folder / name).write_bytes(rows.tobytes())
    return folder


def test_binary_and_pickles_give_the_same_images(data_root: Path) -> None:
    write_binary(data_root, ["data_batch_1.bin", "test_batch.bin"])
    binary = cifar10.load(**cifar10.resolve({}))
    assert binary.classes[3] == "cat"
    (data_root / "cifar10" / "cifar-10-batches-bin").rename(data_root / "aside")
    folder = data_root / "cifar10" / "cifar-10-batches-py"
    folder.mkdir()
    for seed, name in enumerate(["data_batch_1", "test_batch"]):
        images, labels = batch(seed)
        content = {
            b"batch_label": b"a batch",
            b"labels": labels.tolist(),
            b"data": images,
            b"filenames": [b"x.png"] * ROWS,
        }
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    pickled = cifar10.load(**cifar10.resolve({}))
    for part in ("train", "validation", "test"):
        one, other = getattr(binary, part), getattr(pickled, part)
        assert one.images.equal(other.images)
        assert one.targets.equal(other.targets)
        assert one.names == other.names
    images, labels = batch(1)
    assert binary.test.images.flatten(1).numpy().tobytes() == images.tobytes()
    assert binary.test.targets.tolist() == labels.tolist()
    # The first 1,024 bytes of a row are the red channel, row by row.
    assert binary.test.images[5, 0, 1, 2] == images[5, 32 + 2]


def test_validation_is_a_tenth_of_each_class_and_the_same_each_time(data_root: Path) -> None:
    write_binary(data_root, ["data_batch_1.bin", "test_batch.bin"])
    one, two = (cifar10.load(["1"], ["test"], 0.1) for _ in range(2))
    assert one.validation.class_counts(10) == [100] * 10
    assert one.train.class_counts(10) == [900] * 10
    assert one.validation.names == two.validation.names
    assert not set(one.validation.names) & set(one.train.names)


def test_a_folder_of_pictures(data_root: Path) -> None:
    random = np.random.default_rng(0)
    expected = {}
    for part in ("train", "test"):
        for title in cifar10.CLASSES:
            folder = data_root / "cifar10" / part / title
            folder.mkdir(parents=True)
            for number in range(3):
                pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
                expected[f"{part}/{title}/{number}.png"] = pixels
    assert cifar10.resolve({}) == {"train": ["train"], "test": ["test"], "validation": 0.1}
    dataset = cifar10.load(["train"], ["test"], 0.0)
    assert (len(dataset.train), len(dataset.test), dataset.notes) == (30, 30, ())
    for split in (dataset.train, dataset.test):
        for image, target, name in zip(split.images, split.targets, split.names, strict=True):
            assert np.array_equal(image.permute(1, 2, 0).numpy(), expected[name])
            assert cifar10.CLASSES[int(target)] == name.split("/")[1]


def test_without_the_whole_test_file_the_last_batch_is_the_test_part(data_root: Path) -> None:
    folder = write_binary(data_root, ["data_batch_1.bin", "data_batch_5.bin", "test_batch.bin"])
    whole = (folder / "test_batch.bin").read_bytes()
    (folder / "test_batch.bin").unlink()
    (folder / "test_batch.first1017.bin").write_bytes(whole[: 1017 * 3073])
    assert cifar10.resolve({})["train"] == ["1"]
    assert cifar10.resolve({})["test"] == ["5"]
    dataset = cifar10.load(["1"], ["5"], 0.1)
    assert "tested on batch 5 (10,000 images), not on the official test set" in dataset.notes[0]
    partial = cifar10.load(["1"], ["test"], 0.1)
    assert len(partial.test) == 1017
    assert "(1,017 images)" in partial.notes[0]


def test_parts_are_chosen_by_number(data_root: Path) -> None:
    write_binary(data_root, ["data_batch_1.bin", "data_batch_2.bin", "test_batch.bin"])
    assert cifar10.resolve({"train": 2, "test": "test"})["train"] == ["2"]
    assert cifar10.resolve({"train": "1,2", "validation": 0.0}) == {
        "train": ["1", "2"],
        "test": ["test"],
        "validation": 0.0,
    }
    with pytest.raises(ConfigurationError, match="no part '7'; valid: 1, 2"):
        cifar10.resolve({"train": [7]})
    with pytest.raises(ConfigurationError, match=r"part 1 is in data\.train too"):
        cifar10.resolve({"train": [1, 2], "test": [1]})
    with pytest.raises(ConfigurationError, match=r"data\.train: a part is there twice in 1, 1"):
        cifar10.resolve({"train": "1,1"})
    with pytest.raises(DataError, match=r"part 3 is not there; cifar10: no data in"):
        cifar10.resolve({"train": [3]})


def test_what_is_missing_is_said_with_what_to_put_where(data_root: Path) -> None:
    with pytest.raises(DataError) as caught:
        cifar10.resolve({})
    text = str(caught.value)
    assert "\n" not in text
    for words in ("znorm data get cifar10", "data_batch_1.bin", str(data_root), "data verify"):
        assert words in text


def test_a_file_that_is_wrong_is_named(data_root: Path) -> None:
    folder = write_binary(data_root, ["data_batch_1.bin", "test_batch.bin"])
    path = folder / "data_batch_1.bin"
    whole = path.read_bytes()
    for content, message in [
        (whole[:-1], r"data_batch_1\.bin: expected 10000 rows .* found 30729999; it is cut off"),
        (b"<!DOCTYPE html><html>", r"data_batch_1\.bin: expected a data file, found a web page"),
        (whole[:3073] + b"\x0b" + whole[3074:], r"row 1: expected a label from 0 to 9, found 11"),
    ]:
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            cifar10.load(["1"], ["test"], 0.1)


class _Evil:
    def __reduce__(self) -> Any:
        return print, ("this ran",)


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps({b"data": np.zeros((3, 3072), np.uint8), b"labels": [0] * 3}, protocol=2),
        pickle.dumps(_Evil(), protocol=2),
        pickle.dumps({b"data": np.zeros((ROWS, 3072), np.uint8)}, protocol=2),
        b"\x80\x02garbage",
    ],
    ids=["too few", "code", "no labels", "garbage"],
)
def test_a_pickle_that_is_not_the_official_one_is_refused(
    data_root: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = data_root / "cifar10" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in ("data_batch_1", "data_batch_2"):
        (folder / name).write_bytes(content)
    with pytest.raises(DataError, match="data_batch_1: expected a dict with data"):
        cifar10.load(["1"], ["2"], 0.0)
    assert capsys.readouterr().out == ""
