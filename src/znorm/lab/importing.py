"""Modules of a user's own, which may lie in the working folder."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from types import ModuleType

__all__ = ["import_users_module"]


def import_users_module(name: str) -> ModuleType:
    """The module of that name; the working folder is looked in, too, after all others.

    Raises
    ------
    ImportError
        If it cannot be imported, whatever it raised.
    """
    folder = os.getcwd()
    sys.path.append(folder)
    try:
        return import_module(name)
    except (Exception, SystemExit) as error:
        raise ImportError(str(error) or type(error).__name__) from error
    finally:
        sys.path.remove(folder)
