"""The division of images into training, validation and test: by a name's hash, or by patient."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from znorm.lab.errors import DataError

__all__ = ["SPLITS", "by_patient", "checked", "held_out", "read"]

SPLITS = ("train", "validation", "test")

PatientsBySplit = dict[str, list[str]]


def held_out(names: Sequence[bytes], strata: Sequence[int], share: float) -> npt.NDArray[np.bool_]:
    """The items that are set apart: in each stratum those whose names hash lowest.

    The choice depends on names alone, so that it is the same in every run and on every machine.

    Parameters
    ----------
    names : sequence of bytes
    strata : sequence of int
        For each item the group, such as its class, of which the share is taken.
    share : float
        From 0 to 1.
    """
    chosen = np.zeros(len(names), dtype=bool)
    groups = np.asarray(strata)
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group).tolist()
        members.sort(key=lambda i: hashlib.sha256(names[i]).digest())
        chosen[members[: round(share * len(members))]] = True
    return chosen


def by_patient(
    loads: Mapping[str, float], shares: Sequence[float] = (0.7, 0.15, 0.15)
) -> PatientsBySplit:
    """Patients dealt to training, validation and test, stratified by tumour load.

    Patients are taken by rising load, each for the part that is furthest behind its share; among
    equals a hash of the patient's name decides. Neighbours in load thus go to different parts.

    Parameters
    ----------
    loads : mapping of str to float
        The share of pixels that are marked, by patient.
    shares : three numbers that sum to 1

    Examples
    --------
    >>> by_patient({"a": 0.0, "b": 0.1, "c": 0.2, "d": 0.3}, shares=(0.5, 0.25, 0.25))
    {'train': ['a', 'd'], 'validation': ['c'], 'test': ['b']}
    """
    split: PatientsBySplit = {name: [] for name in SPLITS}
    for position, patient in enumerate(sorted(loads, key=lambda name: (loads[name], name))):
        digest = hashlib.sha256(patient.encode()).digest()

        def behind(number: int, position: int = position, digest: bytes = digest) -> Any:
            due = shares[number] * (position + 1) - len(split[SPLITS[number]])
            return round(due, 9), digest[number]

        split[SPLITS[max(range(3), key=behind)]].append(patient)
    return {name: sorted(members) for name, members in split.items()}


def read(path: Path) -> PatientsBySplit:
    """A split from a JSON file: the three parts, each a list of patients.

    Raises
    ------
    DataError
        If it cannot be read or is not one.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a split ({error}); expected JSON") from None
    return checked(content, str(path))


def checked(content: Any, origin: str) -> PatientsBySplit:
    """A split whose form is right: three lists of names, no patient in two of them.

    Raises
    ------
    DataError
        Naming the part or the patient.
    """
    if not isinstance(content, Mapping) or set(content) != set(SPLITS):
        keys = ", ".join(map(str, content)) if isinstance(content, Mapping) else repr(content)
        raise DataError(f"{origin}: a split has the keys {', '.join(SPLITS)}, found {keys[:80]}")
    home: dict[str, str] = {}
    for name in SPLITS:
        if not isinstance(content[name], list | tuple) or not all(
            isinstance(patient, str) for patient in content[name]
        ):
            raise DataError(f"{origin}: {name}: expected a list of patients")
        for patient in content[name]:
            if patient in home:
                where = name if home[patient] == name else f"{home[patient]} and {name}"
                raise DataError(
                    f"{origin}: patient {patient} is twice in the split, in {where}; "
                    "a patient belongs to one part"
                )
            home[patient] = name
    return {name: sorted(content[name]) for name in SPLITS}
