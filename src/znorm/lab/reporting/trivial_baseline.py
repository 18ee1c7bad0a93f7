"""A trivial baseline for each kind of task: a net that does not beat it has learned little.

For classes, colour statistics and logistic regression; for masks, the best threshold of one
channel.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from znorm.lab.datasets import Dataset, Split
from znorm.lab.errors import DataError
from znorm.lab.metrics import Counts, count
from znorm.lab.numbers import is_number
from znorm.lab.runs.files import check_within, read_json, write_atomically
from znorm.lab.spec import RunSpec
from znorm.lab.tasks import TASKS

__all__ = ["TRIVIAL_BASELINES", "TrivialBaseline", "folder", "kept", "trivial_baseline"]

# Training images that the logistic regression is fitted on: more hardly change it.
LARGEST = 10_000


@dataclass(frozen=True)
class TrivialBaseline:
    """The name of a trivial baseline's folder, the label of its row, and a sentence on it."""

    name: str
    label: str
    about: str


TRIVIAL_BASELINES: Mapping[str, TrivialBaseline] = {
    "classes": TrivialBaseline(
        "colour_statistics",
        "colour statistics",
        "logistic regression, classes weighted equally, on the mean, standard deviation and "
        "quantiles (5, 25, 50, 75 and 95 %) of each image's colour channels, fitted on at most "
        f"{LARGEST:,} training images",
    ),
    "mask": TrivialBaseline(
        "threshold",
        "one threshold",
        "every pixel marked in which one channel is at least a threshold, channel and threshold "
        "being those with the highest F1 over all training pixels",
    ),
}


def folder(root: str | os.PathLike[str], spec: RunSpec) -> Path:
    """The folder of the trivial baseline of a run's task and images."""
    kind = TRIVIAL_BASELINES[TASKS[spec.task].output]
    content = json.dumps([kind.about, spec.data.key])
    key = hashlib.sha256(content.encode()).hexdigest()[:8]
    return Path(root) / spec.task / f"{kind.name}__{key}"


def kept(root: str | os.PathLike[str], spec: RunSpec) -> dict[str, Any] | None:
    """The trivial baseline's result.json; None if there is none that can be used."""
    try:
        content = read_json(folder(root, spec) / "result.json")
    except (FileNotFoundError, DataError):
        return None
    metrics = content.get("metrics") if isinstance(content, dict) else None
    if not isinstance(metrics, dict) or not isinstance(content.get("fingerprint", ""), str):
        return None
    usable = all(
        is_number(value) and (not key.startswith(("train_", "test_")) or 0 <= value <= 1)
        for key, value in metrics.items()
    )
    return content if usable else None


def trivial_baseline(
    root: str | os.PathLike[str], spec: RunSpec, dataset: Dataset
) -> dict[str, Any]:
    """The trivial baseline's result.json, worked out if it is not there yet, or is of other images.

    Like the nets it is fitted on the training split alone.
    """
    known = kept(root, spec)
    # Earlier versions did not write down of which images it is.
    if known is not None and (
        "fingerprint" not in known or known["fingerprint"] == dataset.fingerprint
    ):
        return known
    path = folder(root, spec) / "result.json"
    check_within(Path(root), path)
    result = {
        "status": "done",
        "about": TRIVIAL_BASELINES[TASKS[spec.task].output].about,
        "data": spec.data.model_dump(mode="json", exclude={"augment"}, exclude_none=True),
        "fingerprint": dataset.fingerprint,
        "metrics": _threshold(dataset) if dataset.train.has_masks else _colours(dataset),
    }
    text = json.dumps(result, indent=2, sort_keys=True)
    write_atomically(path, (text + "\n").encode())
    return result


def _colours(dataset: Dataset) -> dict[str, float]:
    # Imported here: scikit-learn takes a second to import, and most verbs do not need it.
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train = dataset.train.limited(LARGEST)
    if len(train.labels.unique()) < 2:
        return {}
    classifier = make_pipeline(
        StandardScaler(), LogisticRegression(max_iter=5000, class_weight="balanced")
    )
    classifier.fit(_features(train), train.labels.numpy())
    return {
        f"{name}_accuracy": float(classifier.score(_features(split), split.labels.numpy()))
        for name, split in (("train", train), ("test", dataset.test))
        if len(split)
    }


def _features(split: Split) -> npt.NDArray[np.float64]:
    rows = []
    for block in split.blocks():
        pixels = block.images.numpy().astype(np.float64)
        quantiles = np.quantile(pixels, [0.05, 0.25, 0.5, 0.75, 0.95], axis=(2, 3))
        rows.append(np.concatenate([pixels.mean((2, 3)), pixels.std((2, 3)), *quantiles], axis=1))
    return np.concatenate(rows)


def _threshold(dataset: Dataset) -> dict[str, float]:
    several = range(1, len(dataset.classes))
    of_each = [_threshold_of(dataset, number) for number in several]
    if len(of_each) == 1:
        return of_each[0]
    scores = [name for name in of_each[0] if "_" in name]
    return {name: math.fsum(one[name] for one in of_each) / len(of_each) for name in scores}


def _threshold_of(dataset: Dataset, number: int) -> dict[str, float]:
    """The threshold for what one number marks, and its scores."""
    # Pixels of each value in each channel, outside and inside the masks.
    channels = dataset.train.images.shape[1]
    counts = torch.zeros(2, channels, 256, dtype=torch.int64)
    for block in dataset.train.blocks():
        inside = (block.targets == number).flatten().to(torch.int64)
        for channel in range(channels):
            values = block.images[:, channel].flatten().to(torch.int64)
            both = (inside * 256 + values).bincount(minlength=512)
            counts[:, channel] += both.view(2, 256)
    # From the top: how many pixels are at least the value.
    marked = counts.flip(2).cumsum(2).flip(2)
    fp, tp = marked[0], marked[1]
    fn = counts[1].sum(1, keepdim=True) - tp
    f1 = 2 * tp / (2 * tp + fp + fn).clamp(min=1)
    channel, threshold = divmod(int(f1.argmax()), 256)
    metrics = {"channel": float(channel), "threshold": float(threshold)}
    for name, split in (("train", dataset.train), ("test", dataset.test)):
        pooled = _pooled(split, number, channel, threshold)
        metrics[f"{name}_f1"] = float(pooled.dice())
        metrics[f"{name}_tversky"] = float(pooled.tversky())
    return metrics


def _pooled(split: Split, number: int, channel: int, threshold: int) -> Counts:
    total = torch.zeros(4, 1, dtype=torch.int64)
    for block in split.blocks():
        marks = block.images[:, channel] >= threshold
        counts = count(marks, block.targets == number).pooled()
        total += torch.stack([counts.tp, counts.fp, counts.fn, counts.tn])
    tp, fp, fn, tn = total.unbind()
    return Counts(tp=tp, fp=fp, fn=fn, tn=tn)
