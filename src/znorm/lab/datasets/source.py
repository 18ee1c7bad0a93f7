"""A data set as one object: what each file of this folder declares, and the lab asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from znorm.lab.datasets.data_spec import DataSpec
from znorm.lab.datasets.dataset import Dataset
from znorm.lab.datasets.files import data_root
from znorm.lab.errors import MissingDataError

__all__ = ["DataSource", "Download", "Origin", "State"]


@dataclass(frozen=True)
class Download:
    """One file that a mirror holds.

    Parameters
    ----------
    name : str
        Of the file as it is downloaded.
    digest : str
        "md5:..." or "sha1:...", of the file as it is downloaded.
    size : int or None
        Bytes, where they are known.
    urls : tuple of str
        Mirrors, the first tried first.
    """

    name: str
    digest: str
    size: int | None
    urls: tuple[str, ...]


@dataclass(frozen=True)
class Origin:
    """The place that a public data set comes from.

    Parameters
    ----------
    licence, home : str
        One line each; ``home`` is the page to cite or to log in at.
    folder : str
        Below the data folder.
    by_hand : str
        Which files to put where, if they cannot be downloaded; ``{folder}`` and ``{home}`` stand
        for those.
    downloads : tuple of Download
        Empty where a login stands before the files.
    digests : mapping
        Of the files in ``folder`` once unpacked, relative to it, where they are known.
    """

    licence: str
    home: str
    folder: str
    by_hand: str
    downloads: tuple[Download, ...] = ()
    digests: Mapping[str, str] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """The folder on this machine."""
        return data_root() / self.folder


class State(NamedTuple):
    """The state of a data set on this machine, and what there is of it, in a few words."""

    state: Literal["whole", "part", "missing"]
    found: str = ""


@dataclass(frozen=True)
class DataSource:
    """One data set.

    Parameters
    ----------
    name : str
        Of its task, too.
    about : str
        One line, as ``znorm data list`` shows it.
    load : callable (DataSpec) -> Dataset
        Reads the images. Raises a DataError that names the file, what was expected and what was
        found.
    keys : tuple of str
        Of :class:`~znorm.lab.datasets.data_spec.DataSpec`, those that it takes beside ``augment``
        and ``limit``.
    resolve : callable (mapping) -> dict
        The values of these keys, from those that the user has chosen and from the files that are
        here: a specification holds what was resolved.
    origin : Origin or None
        None for a set that is built in.
    state : callable () -> State
        What of it is on this machine; files are counted, not read.
    is_whole : callable (Dataset) -> bool
        Whether what was read is all of it, where counting files does not tell.
    forget : callable ()
        Lets go of what this process has read before, so that ``znorm data verify`` reads it anew.
    """

    name: str
    about: str
    load: Callable[[DataSpec], Dataset]
    keys: tuple[str, ...] = ()
    resolve: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda chosen: {}
    origin: Origin | None = None
    state: Callable[[], State] = lambda: State("whole")
    is_whole: Callable[[Dataset], bool] = lambda dataset: True
    forget: Callable[[], object] = lambda: None

    def missing(self) -> MissingDataError:
        """The error for a set that is not here: what to put where, and how to check it."""
        origin = self.origin
        assert origin is not None, "what is built in is never missing"
        by_hand = origin.by_hand.format(folder=origin.path, home=origin.home)
        get = f"znorm data get {self.name} downloads it, or " if origin.downloads else ""
        return MissingDataError(
            f"{self.name}: no data in {origin.path}; {get}{by_hand}; "
            f"znorm data verify {self.name} then checks them"
        )
