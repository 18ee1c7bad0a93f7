"""The built-in data: 1,914 real pathology patches of PatchCamelyon, shrunk to 32x32.

Each patch is 96x96 pixels of a lymph node section, averaged over 3x3 blocks. Label 1 says that
its centre holds tumour tissue. PatchCamelyon (Veeling et al., MICCAI 2018) is in the public domain
(CC0); it derives from Camelyon16 (Ehteshami Bejnordi et al., JAMA 2017).
"""

from __future__ import annotations

import hashlib
from importlib import resources

import numpy as np
import torch

from znorm.lab.datasets.dataset import Dataset, Split
from znorm.lab.datasets.source import DataSource
from znorm.lab.datasets.split import held_out
from znorm.lab.datasets.task import Task
from znorm.lab.errors import DataError

__all__ = ["SHA256", "TASK", "load"]

SHA256 = "cbbe41581868f5067e18b70ca8f682d0bfa53c9d10a05a9bbbc60bd16ca21f68"


def load(validation: float) -> Dataset:
    """Read the patches that ship with the package.

    Parameters
    ----------
    validation : float
        The share of each class of the training patches that is set apart for validation: those
        whose ids hash lowest, so that it is the same split in every run.

    Raises
    ------
    DataError
        If the file is not the one that was shipped.
    """
    file = resources.files(__package__).joinpath("pcam_mini.npz")
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); install znorm again") from None
    actual = hashlib.sha256(content).hexdigest()
    if actual != SHA256:
        raise DataError(
            f"{file}: expected sha256 {SHA256[:12]}, found {actual[:12]}; install znorm again"
        )
    with resources.as_file(file) as path, np.load(path) as archive:
        images = torch.from_numpy(archive["images"]).permute(0, 3, 1, 2).contiguous()
        labels = torch.from_numpy(archive["labels"].astype(np.int64))
        ids = [bytes(name) for name in archive["ids"]]
        is_test = archive["is_test"]

    others = np.flatnonzero(~is_test)
    aside = np.zeros(len(ids), dtype=bool)
    aside[others] = held_out([ids[i] for i in others], labels[others].tolist(), validation)

    def split(mask: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> Split:
        index = torch.from_numpy(np.flatnonzero(mask))
        return Split(images[index], labels[index], tuple(ids[i].decode() for i in index))

    return Dataset(
        train=split(~is_test & ~aside),
        validation=split(~is_test & aside),
        test=split(is_test),
        classes=("no tumour", "tumour"),
        notes=(
            "Patches carry no slide or patient id, so that training and test patches may share a "
            "slide: scores are optimistic.",
        ),
    )


TASK = Task(
    data=DataSource(
        name="pcam_mini",
        about="1,914 pathology patches of 32x32 pixels, tumour or not (CC0)",
        load=lambda data: load(data.validation or 0.0),
        keys=("validation",),
        resolve=lambda chosen: {"validation": chosen.get("validation", 0.15)},
    ),
    label="PatchCamelyon mini",
    about="built in: 1,914 real pathology patches of 32x32 pixels, tumour or not",
    output="classes",
    model="resnet20",
    loss="cross_entropy",
    # Small batches: as many steps in 4 epochs as batches of 64 take in 8, and as accurate.
    epochs=4,
    batch_size=32,
    learning_rate=1e-3,
    # Without it a net hardly beats colour statistics on so few patches.
    augment="dihedral",
)
