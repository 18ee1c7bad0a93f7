"""CIFAR-10 (Krizhevsky 2009): 60,000 images of 32x32 in ten classes.

Read from any of three layouts below ``cifar10/``: ``cifar-10-batches-bin/`` (rows of a label and
3,072 bytes), ``cifar-10-batches-py/`` (pickles), or folders of pictures, ``train/CLASS/*.png`` and
``test/CLASS/*.png``. The files of the first two are the parts "1" to "5" and "test".
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from znorm.lab.datasets.dataset import Dataset, Split
from znorm.lab.datasets.decoded import Pixels, decoded
from znorm.lab.datasets.files import data_root, read_bytes, read_picture
from znorm.lab.datasets.source import DataSource, Download, Origin, State
from znorm.lab.datasets.split import held_out
from znorm.lab.datasets.task import Task
from znorm.lab.errors import ConfigurationError, DataError

__all__ = ["CLASSES", "SOURCE", "TASK", "load", "parts_here", "resolve"]

CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
BATCHES = ("1", "2", "3", "4", "5")
ROWS = 10_000
ROW = 3073
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


def folder() -> Path:
    return data_root() / "cifar10"


def parts_here() -> dict[str, Path]:
    """Each part that is there, and its file; of the layout of which most is there.

    A part of the test file, such as the first 1,017 of its rows, counts as "test".
    """
    binary, pickles = folder() / "cifar-10-batches-bin", folder() / "cifar-10-batches-py"
    layouts: list[dict[str, Path]] = [
        {n: path for n in BATCHES if (path := binary / f"data_batch_{n}.bin").exists()},
        {n: path for n in BATCHES if (path := pickles / f"data_batch_{n}").exists()},
        {n: path for n in ("train", "test") if (path := folder() / n).is_dir()},
    ]
    for test in [binary / "test_batch.bin", *sorted(binary.glob("test_batch.*.bin"))]:
        if test.exists():
            layouts[0].setdefault("test", test)
    if (test := pickles / "test_batch").exists():
        layouts[1]["test"] = test
    whole = next((parts for parts in layouts[:2] if len(parts) == 6 and not _is_part(parts)), None)
    if whole is not None:
        return whole
    if len(layouts[2]) == 2:
        return layouts[2]
    return max(layouts, key=len)


def _is_part(parts: Mapping[str, Path]) -> bool:
    return "test" in parts and parts["test"].name not in ("test_batch.bin", "test_batch", "test")


def resolve(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The parts for training and for test.

    By default all five batches and the test file; where that is not whole, the last batch that
    is there is the test part.

    Raises
    ------
    ConfigurationError, DataError
    """
    here = parts_here()
    if not here:
        raise SOURCE.missing()
    numbered = [name for name in here if name != "test"]
    if "test" in here and not _is_part(here):
        train, test = numbered, ["test"]
    else:
        train, test = numbered[:-1], numbered[-1:]
    chosen = {
        "train": _names(asked.get("train"), train),
        "test": _names(asked.get("test"), test),
    }
    for key, names in chosen.items():
        for name in names:
            if name not in (*BATCHES, "test", "train"):
                raise ConfigurationError(
                    f"data.{key}: no part {name!r}; valid: {', '.join(BATCHES)}, test"
                )
            if name not in here:
                raise DataError(f"{folder()}: part {name} is not there; {SOURCE.missing()}")
        if not names:
            raise ConfigurationError(f"data.{key}: give at least one part")
        if len(set(names)) < len(names):
            raise ConfigurationError(f"data.{key}: a part is there twice in {', '.join(names)}")
    if shared := set(chosen["train"]) & set(chosen["test"]):
        raise ConfigurationError(
            f"data.test: part {min(shared)} is in data.train too; test on another"
        )
    return {**chosen, "validation": 0.1 if (v := asked.get("validation")) is None else v}


def _names(value: Any, default: Sequence[str]) -> list[str]:
    if value is None:
        return list(default)
    if isinstance(value, str):
        value = value.split(",")
    items = value if isinstance(value, list | tuple) else [value]
    return [str(item).strip() for item in items]


def load(train: Sequence[str], test: Sequence[str], validation: float) -> Dataset:
    """The chosen parts, the validation part taken from the training part.

    Raises
    ------
    DataError
        Naming the file, what was expected and what was found.
    """
    here = parts_here()
    for name in (*train, *test):
        if name not in here:
            raise DataError(f"{folder()}: part {name} is not there; {SOURCE.missing()}")
    training, testing = _joined(here, train), _joined(here, test)
    names = [name.encode() for name in training.names]
    aside = torch.from_numpy(held_out(names, training.targets.tolist(), validation))
    notes = []
    if list(test) != ["test"] or _is_part(here):
        notes.append(
            f"Part of CIFAR-10: trained on {_said(here, train)}, tested on {_said(here, test)} "
            f"({len(testing):,} images), not on the official test set of 10,000."
        )
    elif sorted(train) not in (list(BATCHES), ["train"]):
        notes.append(f"Part of CIFAR-10: trained on {_said(here, train)} alone.")
    return Dataset(
        train=training.take((~aside).nonzero().flatten()),
        validation=training.take(aside.nonzero().flatten()),
        test=testing,
        classes=CLASSES,
        notes=tuple(notes),
    )


def _said(here: Mapping[str, Path], names: Sequence[str]) -> str:
    numbers = [name for name in names if name in BATCHES]
    said = [f"batch{'es' if len(numbers) > 1 else ''} {', '.join(numbers)}"] if numbers else []
    said += [here[name].name for name in names if name not in BATCHES]
    return " and ".join(said)


def _joined(here: Mapping[str, Path], names: Sequence[str]) -> Split:
    parts = [_read(name, here[name]) for name in names]
    return Split(
        torch.cat([part.images for part in parts]),
        torch.cat([part.targets for part in parts]),
        tuple(name for part in parts for name in part.names),
    )


def _read(name: str, path: Path) -> Split:
    if path.is_dir():
        return _read_folder(name, path)
    images, labels = _read_binary(path) if path.suffix == ".bin" else _read_pickle(path)
    if len(labels) and (labels.min() < 0 or labels.max() > 9):
        wrong = int(np.flatnonzero((labels < 0) | (labels > 9))[0])
        raise DataError(
            f"{path}: row {wrong}: expected a label from 0 to 9, found {int(labels[wrong])}"
        )
    return Split(
        torch.from_numpy(images).view(-1, 3, 32, 32),
        torch.from_numpy(labels),
        tuple(f"{name}/{row}" for row in range(len(labels))),
    )


def _read_binary(path: Path) -> tuple[Any, Any]:
    size = None if _is_part({"test": path}) and path.name.startswith("test") else ROWS * ROW
    content = read_bytes(path, f"{ROWS} rows of {ROW} bytes", size)
    if len(content) % ROW:
        raise DataError(
            f"{path}: expected rows of {ROW} bytes, found {len(content)} bytes; it is cut off"
        )
    rows = np.frombuffer(content, dtype=np.uint8).reshape(-1, ROW)
    return rows[:, 1:].copy(), rows[:, 0].astype(np.int64)


class _ArraysOnly(pickle.Unpickler):
    """Unpickles what the official files hold, arrays and lists: a pickle can run anything else."""

    ALLOWED: ClassVar[set[tuple[str, str]]] = {
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy._core.numeric", "_frombuffer"),
        ("numpy.core.numeric", "_frombuffer"),
        ("_codecs", "encode"),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self.ALLOWED:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise pickle.UnpicklingError(f"it refers to {module}.{name}")


def _read_pickle(path: Path) -> tuple[Any, Any]:
    expected = f"a dict with data ({ROWS}, 3072) uint8 and {ROWS} labels"
    content = read_bytes(path, "a pickle of CIFAR-10")
    try:
        arrays = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
        images = np.asarray(arrays[b"data"])
        labels = np.asarray(arrays[b"labels"], dtype=np.int64)
    except Exception as error:
        # A pickle that is cut off fails in many ways; all of them mean the same.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: expected {expected}, found no such pickle ({reason})") from None
    if images.shape != (ROWS, 3072) or images.dtype != np.uint8 or labels.shape != (ROWS,):
        raise DataError(
            f"{path}: expected {expected}, found data {images.shape} {images.dtype} and "
            f"{labels.shape} labels"
        )
    return images, labels


def _read_folder(name: str, path: Path) -> Split:
    files: list[Path] = []
    labels: list[int] = []
    for label, title in enumerate(CLASSES):
        pictures = sorted(p for p in (path / title).glob("*") if p.suffix.lower() in PICTURES)
        if not pictures:
            raise DataError(f"{path / title}: expected a folder of pictures, found none")
        files += pictures
        labels += [label] * len(pictures)

    def fill(pixels: Pixels) -> None:
        for row, file in enumerate(files):
            pixels[row] = read_picture(file, "RGB", (32, 32)).transpose(2, 0, 1)

    images = decoded(f"cifar10-{name}", files, (len(files), 3, 32, 32), fill)
    names = tuple(f"{name}/{file.parent.name}/{file.name}" for file in files)
    return Split(images, torch.tensor(labels), names)


def state() -> State:
    here = parts_here()
    if not here:
        return State("missing")
    test = here.get("test")
    whole = len(here) == 6 and test is not None and test.name in ("test_batch.bin", "test_batch")
    folders = all(path.is_dir() for path in here.values()) and len(here) == 2
    return State(
        "whole" if whole or folders else "part", ", ".join(path.name for path in here.values())
    )


DIGESTS = {
    f"cifar-10-batches-{edition}/{file}": f"{kind}:{digest}"
    for edition, kind, files in (
        (
            "bin",
            "sha1",
            {
                "data_batch_1.bin": "aadd24acce27caa71bf4b10992e9e7b2d74c2540",
                "data_batch_2.bin": "c0ba65cce70568cd57b4e03e9ac8d2a5367c1795",
                "data_batch_3.bin": "1dd00a74ab1d17a6e7d73e185b69dbf31242f295",
                "data_batch_4.bin": "aab85764eb3584312d3c7f65fd2fd016e36a258e",
                "data_batch_5.bin": "26e2849e66a845b7f1e4614ae70f4889ae604628",
            },
        ),
        (
            "py",
            "md5",
            {
                "data_batch_1": "c99cafc152244af753f735de768cd75f",
                "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
                "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
                "data_batch_4": "634d18415352ddfa80567beed471001a",
                "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
                "test_batch": "40351d587109b95175f43aff81a1287e",
            },
        ),
    )
    for file, digest in files.items()
}

SOURCE = DataSource(
    name="cifar10",
    about="60,000 photographs of 32x32 pixels in ten classes",
    load=lambda data: load(data.train or (), data.test or (), data.validation or 0.0),
    keys=("train", "test", "validation"),
    resolve=resolve,
    state=state,
    origin=Origin(
        licence="none stated; cite Krizhevsky 2009",
        home="https://www.cs.toronto.edu/~kriz/cifar.html",
        folder="cifar10",
        by_hand=(
            "put data_batch_1.bin to data_batch_5.bin and test_batch.bin into "
            "{folder}/cifar-10-batches-bin/ (or the python edition's files into "
            "{folder}/cifar-10-batches-py/)"
        ),
        downloads=(
            Download(
                "cifar-10-binary.tar.gz",
                "md5:c32a1d4ab5d03f1284b67883e8d87530",
                170_052_171,
                (
                    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
                    "https://cave.cs.toronto.edu/kriz/cifar-10-binary.tar.gz",
                ),
            ),
        ),
        digests=DIGESTS,
    ),
)

TASK = Task(
    data=SOURCE,
    label="CIFAR-10",
    about="60,000 photographs of 32x32 pixels in ten classes (paper, Table 1)",
    output="classes",
    model="resnet56",
    loss="cross_entropy",
    epochs=100,
    batch_size=256,
    learning_rate=1e-3,
)
