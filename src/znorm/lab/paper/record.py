"""The record of what a folder of runs reproduces, beside the runs: every later page reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from znorm.lab.errors import ConfigurationError, DataError
from znorm.lab.paper.grids import SCALES, TARGETS, Scale
from znorm.lab.runs.files import read_file, write_atomically

__all__ = ["Record"]

_NAME = "reproduction.json"


@dataclass(frozen=True)
class Record:
    """The scale of all runs in a folder, and what was asked for.

    Parameters
    ----------
    scale : str
        A folder holds one, so that what is not a result never stands among results.
    tasks : mapping
        For each target that was asked for the task that was trained, a stand-in's or its own.
    cases : tuple of str
        Test slices to show in Figure 2 beside the best, the median and the worst.
    """

    scale: str
    tasks: Mapping[str, str] = field(default_factory=dict)
    cases: tuple[str, ...] = ()

    @property
    def size(self) -> Scale:
        return SCALES[self.scale]

    @classmethod
    def read(cls, root: Path) -> Record | None:
        """The record of a folder, if it has one.

        Raises
        ------
        DataError
            If it cannot be read.
        """
        path = root / _NAME
        try:
            record = TypeAdapter(Record).validate_json(read_file(path))
        except FileNotFoundError:
            return None
        except ValidationError as error:
            first = str(error).splitlines()[0]
            raise DataError(f"{path}: cannot be read ({first}); move it away") from None
        if record.scale not in SCALES or not record.tasks.keys() <= TARGETS.keys():
            raise DataError(f"{path}: not of this version of znorm; move it away")
        return record

    def joined(self, root: Path) -> Record:
        """This record and the one that stands in a folder already, as one.

        Raises
        ------
        ConfigurationError
            If the folder holds another scale.
        """
        before = Record.read(root)
        if before is not None and before.scale != self.scale:
            raise ConfigurationError(
                f"{root} holds runs at scale {before.scale}; give scale {self.scale} another --out"
            )
        tasks = {**(before.tasks if before else {}), **self.tasks}
        cases = self.cases or (before.cases if before else ())
        return Record(self.scale, tasks, cases)

    def write(self, root: Path) -> Record:
        """Add to what stands in a folder already, and keep the whole; errors as :meth:`joined`."""
        whole = self.joined(root)
        content = (json.dumps(asdict(whole), indent=2) + "\n").encode()
        write_atomically(root / _NAME, content)
        return whole
