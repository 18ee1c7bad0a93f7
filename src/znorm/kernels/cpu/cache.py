"""The place where numba keeps what it compiles of the kernels."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numba

__all__ = ["own_cache"]


@contextmanager
def own_cache() -> Iterator[None]:
    """Functions that are decorated within are kept by the text of all files of this folder.

    numba looks at the file of a function alone: it would take an old kernel whose loops, which are
    part of it, have changed in another file.
    """
    config: Any = numba.config
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for source in sorted(here.glob("*.py")):
        digest.update(source.read_bytes())
    kept = config.CACHE_DIR
    # Of the environment alone: numba reads a file in the current folder, too, and what is kept
    # there is loaded as pickles.
    asked = os.environ.get("NUMBA_CACHE_DIR")
    if asked:
        base = Path(asked)
    elif os.access(here, os.W_OK):
        base = here / "__pycache__"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "znorm"
    config.CACHE_DIR = str(base / f"kernels-{digest.hexdigest()[:16]}")
    try:
        yield
    finally:
        config.CACHE_DIR = kept
