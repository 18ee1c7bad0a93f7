"""The look of each method's curves: a colour, dashes and a marker, the same in all its figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from znorm.lab.reporting.svg import AMBER, BLUE, GREY

__all__ = ["MARKS", "Legend", "Stroke", "legend_of", "strokes_of"]

# Okabe and Ito's colours, which colour-blind readers can tell apart, at a lightness that has a
# contrast of 3 or more on the page's white and on its black.
COLOURS = (GREY, BLUE, AMBER, "#009e73", "#c46fa3", "#d9480f", "#7a6ff0", "#a07b00")
# Lengths on and off, in widths of the line. Their number, that of the markers and that of the
# colours have no common factor: 280 methods come before two look alike.
DASHES: tuple[tuple[float, ...], ...] = (
    (4.0, 1.6),
    (),
    (6.0, 1.5, 1.2, 1.5),
    (1.4, 1.4),
    (8.0, 2.0),
)
# By matplotlib's name the outline that a legend draws, around 0 with a radius of 1.
MARKS: Mapping[str, str] = {
    "o": "M-1 0a1 1 0 1 0 2 0a1 1 0 1 0 -2 0z",
    "s": "M-.9 -.9h1.8v1.8h-1.8z",
    "^": "M0 -1L1 1H-1z",
    "D": "M0 -1.1L1.1 0L0 1.1L-1.1 0z",
    "v": "M0 1L1 -1H-1z",
    "P": "M-.35 -1h.7v.65h.65v.7h-.65v.65h-.7v-.65h-.65v-.7h.65z",
    "X": "M-1 -.5L-.5 -1L0 -.5L.5 -1L1 -.5L.5 0L1 .5L.5 1L0 .5L-.5 1L-1 .5L-.5 0z",
}
_WIDTH = 1.8


@dataclass(frozen=True)
class Stroke:
    """The look of a method's curves.

    Parameters
    ----------
    key : str
        Names the method on the page: no label could be told from a piece of its code.
    colour : str
    dashes : tuple of float
        Lengths on and off, in widths of the line; empty for a line without gaps.
    mark : str
        A key of `MARKS`.
    """

    key: str
    colour: str
    dashes: tuple[float, ...]
    mark: str

    def settings(self, points: int) -> dict[str, Any]:
        """The arguments of matplotlib's ``plot`` for a line of so many points.

        Of many points a few carry the marker, at other places than those of the next method.
        """
        every = max(1, points // 8)
        return {
            "color": self.colour,
            "linestyle": (0, self.dashes) if self.dashes else "-",
            "linewidth": _WIDTH,
            "marker": self.mark,
            "markersize": 4.2,
            "markevery": 1 if points <= 20 else (int(self.key[1:]) * every // 3 % every, every),
        }

    @property
    def sample(self) -> Markup:
        """A piece of the line as SVG, for a legend."""
        dashes = " ".join(f"{2 * length:g}" for length in self.dashes) or "none"
        return Markup(
            '<svg class="sample" viewBox="0 0 44 12" aria-hidden="true">'
            '<path d="M0 6H44" stroke="{0}" stroke-width="2" stroke-dasharray="{1}"/>'
            '<path d="{2}" fill="{0}" transform="translate(22 6) scale(3.6)"/></svg>'
        ).format(self.colour, dashes, MARKS[self.mark])


# Labels of methods, and the look of each.
Legend = Sequence[tuple[str, Stroke]]


def strokes_of(labels: Iterable[str]) -> dict[str, Stroke]:
    """A look for each label, in their order; of a label that comes twice the same."""
    marks = tuple(MARKS)
    return {
        label: Stroke(
            f"m{place}",
            COLOURS[place % len(COLOURS)],
            DASHES[place % len(DASHES)],
            marks[place % len(marks)],
        )
        for place, label in enumerate(dict.fromkeys(labels))
    }


def legend_of(labels: Iterable[str], strokes: Mapping[str, Stroke] | None) -> Legend:
    """The looks of these labels among those of a page, or among themselves."""
    mine = tuple(labels)
    looks = strokes_of(mine) if strokes is None else strokes
    return tuple((label, looks[label]) for label in mine)
