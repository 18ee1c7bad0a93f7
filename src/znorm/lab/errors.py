"""Errors of a request, each with the exit code that tells it."""

from __future__ import annotations

import errno

__all__ = [
    "INTERRUPTED",
    "ConfigurationError",
    "DataError",
    "DiskFullError",
    "Interrupted",
    "LabError",
    "MissingDataError",
    "is_disk_full",
]


INTERRUPTED = "znorm: interrupted; the same command goes on where this stopped"


class LabError(Exception):
    """An error whose message is one line for the user."""

    exit_code = 1


class ConfigurationError(LabError, ValueError):
    """A name, key or value that is not valid."""

    exit_code = 2


class DataError(LabError):
    """Data that is missing or unreadable."""

    exit_code = 3


class MissingDataError(DataError):
    """A whole data set is not there."""


class DiskFullError(LabError):
    """No space is left; what was saved before stays."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM; what could be saved has been."""

    exit_code = 130


def is_disk_full(error: OSError) -> bool:
    """Tell whether the error says that no space, or no quota, is left."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
