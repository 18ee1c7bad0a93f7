"""matplotlib's figures as SVG text that takes its ink and its size from the page around it."""

from __future__ import annotations

import hashlib
import io
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, chdir, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from znorm.lab.text import readable

__all__ = ["AMBER", "BLUE", "GREY", "ORANGE", "as_svg", "drawing", "mark", "style"]

# Okabe and Ito's, at a lightness that shows on white and on black: a contrast of 3 or more.
GREY, BLUE, AMBER = "#808080", "#0f83c9", "#c87800"
# Over pictures, on a dark line beneath it.
ORANGE = "#e08a00"

# What text and axes are drawn in; the page replaces it by its own text colour.
_INK = "#010203"


_METHOD = "method:"
_SVG, _XLINK = "{http://www.w3.org/2000/svg}", "http://www.w3.org/1999/xlink"
_HREF = f"{{{_XLINK}}}href"
_REFERENCE = re.compile(r"#([^)]+)")
ElementTree.register_namespace("", _SVG[1:-1])
ElementTree.register_namespace("xlink", _XLINK)

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


def mark(artists: Iterable[Any], method: str) -> None:
    """Mark what was drawn as a method's, so that the page can hide it: `as_svg` writes it down."""
    for artist in artists:
        artist.set_gid(f"{_METHOD}{method}")


def as_svg(figure: Any, *, label: str, description: str = "") -> str:
    """The figure, transparent, as wide as its place in a page.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
    label : str
        A few words for who cannot see it.
    description : str
        A sentence for them on what it shows.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    root = ElementTree.fromstring(text)
    # A rule for all elements, which would be one for all of the page.
    for defs in root.findall(f"{_SVG}defs"):
        for sheet in defs.findall(f"{_SVG}style"):
            defs.remove(sheet)
    for metadata in root.findall(f"{_SVG}metadata"):
        root.remove(metadata)
    _name_apart(root, hashlib.sha256(f"{readable(label)} {text}".encode()).hexdigest()[:8])
    # Without a size of its own the picture takes that of its place in the page.
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    root.set("style", "stroke-linejoin: round; stroke-linecap: butt")
    root.set("role", "img")
    root.set("aria-label", readable(label))
    if description:
        # Not a title, which browsers show over the figure.
        words = ElementTree.Element(f"{_SVG}desc")
        words.text = readable(description)
        root.insert(0, words)
    return ElementTree.tostring(root, encoding="unicode")


def _name_apart(root: ElementTree.Element, prefix: str) -> None:
    """Keep names that something refers to, apart from those of a page's other figures."""
    everything = list(root.iter())
    used = set()
    for element in everything:
        for key, value in element.attrib.items():
            found = _REFERENCE.fullmatch(value) if key == _HREF else _REFERENCE.search(value)
            if found is not None and (key == _HREF or value.startswith("url(")):
                used.add(found[1])
                element.set(key, value.replace(f"#{found[1]}", f"#{prefix}-{found[1]}"))
    for element in everything:
        name = element.attrib.pop("id", "")
        if name.startswith(_METHOD):
            element.set("data-method", name.removeprefix(_METHOD))
        elif name in used:
            element.set("id", f"{prefix}-{name}")
