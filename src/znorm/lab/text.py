"""Names and texts that others chose, as a terminal, a figure and a link can hold them."""

from __future__ import annotations

import math
import os
from pathlib import Path
from urllib.parse import quote

from rich.text import Text

__all__ = ["duration", "link", "literal", "readable"]


def duration(seconds: float) -> str:
    """A span of time with as many digits as a plan has.

    >>> [duration(seconds) for seconds in (7.4, 600, 2e4, 1e6, float("nan"))]
    ['7 s', '10 min', '5.6 h', '11.6 days', '–']
    """
    if math.isnan(seconds):
        return "–"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 72 * 3600 else f"{seconds / 86400:.1f} days"


def readable(text: str) -> str:
    """The text with a question mark for what has no look: control characters, broken bytes.

    >>> readable("b\\udcfcr\\x1b[31m")
    'b?r?[31m'
    """
    return "".join(
        one if one.isprintable() or one == "\n" else " " if one.isspace() else "?" for one in text
    )


def literal(text: str, style: str = "") -> Text:
    """The text for a terminal as it is: brackets and colons in it are no markup."""
    return Text(readable(text), style)


def link(root: Path, path: Path) -> str:
    """The address of a path on a page in ``root``: no folder's name passes for a scheme or a query.

    >>> link(Path("runs"), Path("runs/javascript:alert(1)/a #1?"))
    'javascript%3Aalert%281%29/a%20%231%3F'
    """
    inner = path.relative_to(root) if path.is_relative_to(root) else path
    return quote(os.fsencode(inner.as_posix()))
