"""matplotlib's figures as SVG text that takes its ink and its size from the page around it."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["BLUE", "GREY", "ORANGE", "as_svg", "style"]

# Okabe and Ito's, at a lightness that shows on white and on black.
GREY, BLUE, ORANGE = "#808080", "#0f83c9", "#e08a00"

# What text and axes are drawn in; the page replaces it by its own text colour.
_INK = "#010203"


@contextmanager
def style() -> Iterator[None]:
    """Within it figures are drawn as pages show them, the same bytes each time."""
    # Imported here: matplotlib takes half a second, and only pages need it.
    import matplotlib as mpl

    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "znorm",
        "font.family": "sans-serif",
        "font.size": 10.5,
        "text.color": _INK,
        "axes.edgecolor": _INK,
        "axes.labelcolor": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with mpl.rc_context(settings):
        yield


def as_svg(figure: Any) -> str:
    """The figure, transparent, as wide as its place in a page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    # Without a size of its own the picture takes that of its place in the page.
    head, bracket, rest = svg.partition(">")
    return re.sub(r' (?:width|height)="[^"]*"', "", head) + bracket + rest
