"""The facts on a page about the images of its runs, also once the images are gone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from znorm.lab.datasets import Dataset, Split
from znorm.lab.errors import DataError
from znorm.lab.runs.files import check_within, read_file, write_atomically
from znorm.lab.spec import RunSpec

__all__ = ["DataCard", "data_card"]


@dataclass(frozen=True)
class DataCard:
    """The facts on a data set.

    Parameters
    ----------
    classes : tuple of str
        As of :class:`znorm.lab.datasets.Dataset`.
    images : mapping
        Of "training", "validation" and "test", how many images each class has.
    notes : tuple of str
        What a reader must know: that it is a part of a set, limited, synthetic.
    groups : mapping or None
        Of the same names, how many groups, such as patients, the images are of; of "all" how many
        in all of them: fewer than their sum where a group is in several. None where they are not
        known.
    cases : mapping or None
        Of the same names, how many images there are, where one counts for several classes.
    """

    classes: tuple[str, ...]
    images: Mapping[str, tuple[int, ...]]
    notes: tuple[str, ...]
    groups: Mapping[str, int] | None = None
    cases: Mapping[str, int] | None = None

    def count(self, part: str) -> int:
        """The images of a part."""
        return sum(self.images[part]) if self.cases is None else self.cases[part]


def data_card(
    root: Path, spec: RunSpec, dataset: Dataset | DataError, trained_on: Collection[str] = ()
) -> DataCard:
    """The card of the images if they are here, kept beside the runs then; else as it was kept.

    A part of a set must not pass for the whole because its images have been moved away.

    Parameters
    ----------
    root : Path
    spec : RunSpec
    dataset : Dataset or DataError
        Images that the runs were trained on, or why they are not here.
    trained_on : collection of str
        The fingerprints of the runs' images, where they tell: each set has a card of its own, so
        that no other that takes its place can take its card's.
    """
    # One without a fingerprint is of runs that do not tell, as those of earlier versions.
    unnamed = _place(root, spec, "")
    if isinstance(dataset, Dataset):
        splits = {
            "training": dataset.train,
            "validation": dataset.validation,
            "test": dataset.test,
        }
        number = len(dataset.classes)
        card = DataCard(
            dataset.classes,
            {name: tuple(part.class_counts(number)) for name, part in splits.items()},
            dataset.notes,
            _groups(splits),
            _cases(splits) if dataset.train.has_masks else None,
        )
        # Cards of earlier versions have no groups.
        shown = {key: value for key, value in asdict(card).items() if value is not None}
        content = (json.dumps(shown, indent=2) + "\n").encode()
        path = _place(root, spec, dataset.fingerprint) if trained_on else unnamed
        if content not in (_kept(path), _kept(unnamed)):
            check_within(root, path)
            write_atomically(path, content)
        return card
    for path in (*(_place(root, spec, one) for one in sorted(trained_on)), unnamed):
        with suppress(ValidationError):
            return TypeAdapter(DataCard).validate_json(_kept(path) or b"")
    return DataCard((), {}, (f"The images are not here: {dataset}",))


def _groups(splits: Mapping[str, Split]) -> dict[str, int] | None:
    if not any(split.patients for split in splits.values()):
        return None
    together = {group for split in splits.values() for group in split.patients}
    return {
        **{name: len(set(part.patients)) for name, part in splits.items()},
        "all": len(together),
    }


def _cases(splits: Mapping[str, Split]) -> dict[str, int] | None:
    """The images of each part, where their counts by class do not add up to them."""
    counts = {name: len(split.case_names) for name, split in splits.items()}
    added = {name: sum(split.class_counts(2)) for name, split in splits.items()}
    several = any(int(split.targets.max()) > 1 for split in splits.values() if len(split))
    return counts if several or counts != added else None


def _place(root: Path, spec: RunSpec, fingerprint: str) -> Path:
    content = f"{spec.data_key} {fingerprint}" if fingerprint else spec.data_key
    key = hashlib.sha256(content.encode()).hexdigest()[:8]
    return root / spec.task / f"data__{key}.json"


def _kept(path: Path) -> bytes | None:
    try:
        return read_file(path)
    except (FileNotFoundError, DataError):
        return None
