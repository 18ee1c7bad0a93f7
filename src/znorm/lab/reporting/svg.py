"""matplotlib's figures as SVG text that takes its ink and its size from the page around it."""

from __future__ import annotations

import io
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, chdir, contextmanager, nullcontext
from pathlib import Path
from typing import Any

__all__ = ["BLUE", "GREY", "ORANGE", "as_svg", "drawing", "style"]

# Okabe and Ito's, at a lightness that shows on white and on black.
GREY, BLUE, ORANGE = "#808080", "#0f83c9", "#e08a00"

# What text and axes are drawn in; the page replaces it by its own text colour.
_INK = "#010203"


# What stays the user's: which windows a notebook opens.
_NOT_OF_FIGURES = ("backend", "backend_fallback", "interactive", "toolbar")


@contextmanager
def drawing(**settings: Any) -> Iterator[None]:
    """Within it figures are drawn by these settings and matplotlib's own, not by the user's."""
    mpl = _matplotlib()
    defaults = {
        key: value for key, value in mpl.rcParamsDefault.items() if key not in _NOT_OF_FIGURES
    }
    defaults |= {"svg.fonttype": "none", "svg.hashsalt": "znorm", **settings}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mpl.MatplotlibDeprecationWarning)  # of settings
        # SVG holds letters that the font here lacks as text: the reader's may have them.
        warnings.filterwarnings("ignore", r"Glyph \d+ |Matplotlib currently does not support")
        with mpl.rc_context(defaults):
            yield


def _matplotlib() -> Any:
    # Imported here: matplotlib takes half a second, and only pages need it. It then reads a
    # matplotlibrc of the current folder before all others; whatever lies there, no page must fail.
    # Among Python's own modules there is none, nor a module that hides another.
    trap = "matplotlib" not in sys.modules and os.path.exists("matplotlibrc")
    with chdir(Path(os.__file__).parent) if trap else nullcontext():
        import matplotlib

        return matplotlib


def style() -> AbstractContextManager[None]:
    """Within it figures are drawn as pages show them, the same bytes each time."""
    return drawing(
        **{
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
    )


def as_svg(figure: Any) -> str:
    """The figure, transparent, as wide as its place in a page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    # Without a size of its own the picture takes that of its place in the page.
    head, bracket, rest = svg.partition(">")
    return re.sub(r' (?:width|height)="[^"]*"', "", head) + bracket + rest
