"""A panel of lines: the figure, what it shows in words, and its values for the page's script."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from znorm.lab.reporting.strokes import Stroke
from znorm.lab.reporting.svg import GREY, as_svg, mark, style

__all__ = ["Line", "Panel", "line_panel", "plot_area", "shown"]

# What a description gives in words; the readout and the tables have the rest.
_IN_WORDS = 8


@dataclass(frozen=True)
class Panel:
    """A figure of a page.

    Parameters
    ----------
    svg : str
    readout : mapping
        What the page's script shows at the pointer: where points are in the figure, and the values
        there; empty where it shows nothing.
    """

    svg: str
    readout: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Line:
    """A line of a panel.

    Parameters
    ----------
    label : str
    stroke : Stroke
    points : mapping of int to float
        The line.
    low, high : mapping of int to float
        A band around it, at the same places; empty for none.
    dotted : bool
        In dots, and beside the method's own line.
    """

    label: str
    stroke: Stroke
    points: Mapping[int, float]
    low: Mapping[int, float] = field(default_factory=dict)
    high: Mapping[int, float] = field(default_factory=dict)
    dotted: bool = False


def line_panel(
    title: str,
    x_title: str,
    lines: Sequence[Line],
    *,
    y_title: str = "",
    logarithmic: bool = False,
    level: tuple[str, float] | None = None,
) -> Panel:
    """Lines over whole numbers, such as epochs.

    Parameters
    ----------
    title, x_title, y_title : str
    lines : sequence of Line
    logarithmic : bool
        The axis of the values, then.
    level : (str, float), optional
        A text and a value that a dotted line across the panel marks.
    """
    with style():
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

        figure = Figure(figsize=(4.7, 3.3), layout="constrained")
        axes: Any = figure.subplots()
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_xlabel(x_title)
        axes.set_ylabel(y_title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.6)
        for line in lines:
            _draw(axes, line)
        if logarithmic:
            axes.set_yscale("log")
        if axes.dataLim.width == 0:
            axes.set_xticks([1])  # a single epoch
        if level is not None:
            axes.axhline(level[1], color=GREY, linewidth=1, linestyle=":")
            axes.annotate(
                level[0],
                (1, level[1]),
                xycoords=("axes fraction", "data"),
                ha="right",
                va="bottom",
                fontsize=9,
            )
        label = f"{title} by {x_title}"
        svg = as_svg(figure, label=label, description=_in_words(lines, x_title, level))
        places = sorted({place for line in lines for place in line.points})
        if not places:
            return Panel(svg)
        readout = {
            **plot_area(figure, axes, places),
            "what": x_title,
            "at": [str(place) for place in places],
            "lines": [_values(line, places) for line in lines],
        }
        return Panel(svg, readout)


def _draw(axes: Any, line: Line) -> None:
    places = list(line.points)
    settings = line.stroke.settings(len(places))
    if line.dotted:
        settings |= {"linestyle": ":", "markersize": 2.5}
    mark(axes.plot(places, list(line.points.values()), **settings), line.stroke.key)
    if line.low:
        low, high = ([band[place] for place in places] for band in (line.low, line.high))
        band = axes.fill_between(
            places, low, high, color=line.stroke.colour, alpha=0.08, linewidth=0
        )
        mark([band], line.stroke.key)


def plot_area(figure: Any, axes: Any, places: Sequence[float]) -> dict[str, Any]:
    """The box of a drawn panel's axes in the units of its SVG, and where its points are in it."""
    width, height = (72 * inches for inches in figure.get_size_inches())
    box = axes.get_position()
    left, right = axes.get_xlim()
    return {
        "box": [round(height * (1 - box.y1), 1), round(height * (1 - box.y0), 1)],
        "x": [
            round(width * (box.x0 + box.width * (place - left) / (right - left)), 1)
            for place in places
        ],
    }


def _values(line: Line, places: Sequence[int]) -> dict[str, Any]:
    """A line's values at each place as texts, null where it has none."""
    texts: list[str | None] = []
    for place in places:
        value = line.points.get(place, math.nan)
        if math.isnan(value):
            texts.append(None)
        elif line.low and line.low[place] < line.high[place]:
            texts.append(f"{shown(value)} ({shown(line.low[place])} to {shown(line.high[place])})")
        else:
            texts.append(shown(value))
    return {"key": line.stroke.key, "label": line.label, "values": texts}


def shown(value: float) -> str:
    """A value with four digits, as a readout shows it.

    >>> shown(78.4), shown(-0.00012341), shown(12345.6), shown(1e-9)
    ('78.40', '−0.0001234', '12346', '1.000e−09')
    """
    text = f"{value:.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:#.4g}"
    if "e" in text and 1e-6 <= abs(value) < 1e-4:
        text = f"{float(text):.10f}".rstrip("0")
    return text.rstrip(".").replace("-", "−")


def _in_words(lines: Sequence[Line], x_title: str, level: tuple[str, float] | None) -> str:
    """The values at the end of each line."""
    words = []
    for line in lines[:_IN_WORDS]:
        known = [place for place, value in line.points.items() if not math.isnan(value)]
        if not known:
            continue
        (text,) = _values(line, known[-1:])["values"]
        words.append(f"{line.label} {text} at {x_title} {known[-1]}")
    text = f"{len(lines)} line{'' if len(lines) == 1 else 's'}"
    if words:
        text += f", at their ends: {'; '.join(words)}"
    if len(lines) > _IN_WORDS:
        text += f"; and {len(lines) - _IN_WORDS} more"
    if level is not None:
        text += f". {level[0]}: {shown(level[1])}"
    return f"{text}."
