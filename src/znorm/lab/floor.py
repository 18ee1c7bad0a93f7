"""A trivial floor: colour statistics and logistic regression. A net that does not beat it has
learned nothing of what is in the picture."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from znorm.lab.datasets import Dataset, Part
from znorm.lab.spec import RunSpec
from znorm.lab.store import write_atomically

__all__ = ["ABOUT", "floor", "folder"]

ABOUT = (
    "logistic regression, classes weighted equally, on the mean, standard deviation and quantiles "
    "(5, 25, 50, 75 and 95 %) of each image's colour channels"
)


def folder(root: str | os.PathLike[str], spec: RunSpec) -> Path:
    """Where the floor of a run's task and data parts is kept."""
    data = spec.data.model_dump(mode="json", exclude={"augment"})
    content = json.dumps([ABOUT, data], sort_keys=True)
    key = hashlib.sha256(content.encode()).hexdigest()[:8]
    return Path(root) / spec.task / f"colour_statistics__{key}"


def floor(root: str | os.PathLike[str], spec: RunSpec, dataset: Dataset) -> dict[str, Any]:
    """The floor's result.json, worked out if it is not there yet.

    Like the nets it is fitted on the training part alone.
    """
    path = folder(root, spec) / "result.json"
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
        return found
    except (OSError, ValueError):
        pass
    result = {
        "status": "done",
        "about": ABOUT,
        "data": spec.data.model_dump(mode="json", exclude={"augment"}),
        "metrics": _scores(dataset),
    }
    text = json.dumps(result, indent=2, sort_keys=True)
    write_atomically(path, (text + "\n").encode())
    return result


def _scores(dataset: Dataset) -> dict[str, float]:
    # Imported here: scikit-learn takes a second to import, and most verbs do not need it.
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(dataset.train.labels.unique()) < 2:
        return {}
    classifier = make_pipeline(
        StandardScaler(), LogisticRegression(max_iter=5000, class_weight="balanced")
    )
    classifier.fit(_features(dataset.train), dataset.train.labels.numpy())
    return {
        f"{name}_accuracy": float(classifier.score(_features(part), part.labels.numpy()))
        for name, part in (("train", dataset.train), ("test", dataset.test))
        if len(part)
    }


def _features(part: Part) -> npt.NDArray[np.float64]:
    pixels = part.images.numpy().astype(np.float64)
    quantiles = np.quantile(pixels, [0.05, 0.25, 0.5, 0.75, 0.95], axis=(2, 3))
    return np.concatenate([pixels.mean((2, 3)), pixels.std((2, 3)), *quantiles], axis=1)
