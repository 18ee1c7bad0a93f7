"""Names to things; a name that is not there is answered with the nearest ones."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from znorm.lab.errors import ConfigurationError

__all__ = ["lookup", "unknown"]

T = TypeVar("T")


def lookup(kind: str, name: object, table: Mapping[str, T]) -> T:
    """The entry ``name`` of ``table``.

    Raises
    ------
    ConfigurationError
        Naming ``kind`` and the nearest valid names.
    """
    if isinstance(name, str) and name in table:
        return table[name]
    raise unknown(kind, name, table)


def unknown(kind: str, name: object, valid: Iterable[str]) -> ConfigurationError:
    """The error for a name that is not valid."""
    names = list(valid)
    near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
    hint = "did you mean " + " or ".join(near) if near else "valid: " + ", ".join(names)
    return ConfigurationError(f"unknown {kind} {str(name)!r}; {hint}")
