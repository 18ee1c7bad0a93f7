"""The texts of a page as a reader sees them, each with its place, whatever the page looks like."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any

__all__ = ["PageText", "numbers_in", "read_page"]

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*(?:e[-+]?\d+)?")
# Elements in which the text around goes on.
_INLINE = frozenset(("a", "abbr", "b", "br", "code", "em", "i", "small", "span", "strong", "sub"))
_INLINE |= frozenset(("sup", "time", "tspan", "wbr"))
_VOID = frozenset(("br", "col", "hr", "img", "input", "link", "meta", "source", "wbr"))
# Elements whose content no reader sees.
_UNSEEN = frozenset(("script", "style", "template"))
# Attributes whose content a pointer or a screen reader shows, and where a number leads to.
_SHOWN = frozenset(("title", "aria-label", "aria-description", "href"))


@dataclass(frozen=True)
class PageText:
    """The texts of a page.

    Parameters
    ----------
    texts : tuple of (str, str)
        The place of each, as "section, row, column", and the text.
    left_out : int
        The numbers in what is drawn from the images, which no file of numbers holds.
    record : mapping or None
        That of :func:`znorm.lab.reporting.record.record_of`; None in pages of earlier versions.
    """

    texts: tuple[tuple[str, str], ...]
    left_out: int
    record: dict[str, dict[str, str]] | None


def numbers_in(text: str) -> list[str]:
    """The numbers in a text, as they are written.

    >>> numbers_in("91.2 ± 0.4 over 3 seeds, p 1e-3")
    ['91.2', '0.4', '3', '1e-3']
    """
    return _NUMBER.findall(text)


def read_page(page: str) -> PageText:
    """Take the texts out of a page."""
    reader = _Reader()
    reader.feed(page)
    reader.close()
    reader.flush()
    try:
        record: Any = json.loads(reader.record) if reader.record else None
    except (ValueError, RecursionError):
        record = None
    whole = isinstance(record, dict) and all(isinstance(one, dict) for one in record.values())
    return PageText(tuple(reader.texts), reader.left_out, record if whole else None)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[tuple[str, str]] = []
        self.left_out = 0
        self.record = ""
        self._open: list[tuple[str, str]] = []  # each element, and what it is to us
        self._text = ""
        self._section = self._row = self._column = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attrs}
        if tag not in _INLINE:
            self.flush()
        if tag in ("tr", "section"):
            self._row = ""
        if tag in ("td", "th"):
            self._column = given.get("data-label", "")
        kind = ""
        if given.get("data-from"):
            kind = "elsewhere"
        elif tag in _UNSEEN:
            data = given.get("type") == "application/json"
            kind = "unseen" if not data else "record" if given.get("id") == "record" else ""
        if tag not in _VOID:
            self._open.append((tag, kind))
        for key, value in attrs:
            if (key in _SHOWN or key.startswith("data-")) and key not in (
                "data-from",
                "data-label",
            ):
                self._say(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        text = " ".join(self._text.split())
        if tag not in _INLINE:
            self.flush()
        if tag == "h2":
            self._section = text
        if tag == "th" and text:
            self._row = text
        names = [name for name, _ in self._open]
        if tag in names:  # what was left open within it ends, too
            del self._open[len(names) - 1 - names[::-1].index(tag) :]

    def handle_data(self, data: str) -> None:
        if any(kind == "record" for _, kind in self._open):
            self.record += data
        else:
            self._text += f" {data}" if self._text else data

    def flush(self) -> None:
        text, self._text = self._text, ""
        self._say(text)

    def _say(self, text: str) -> None:
        shown = " ".join(text.split())
        kinds = {kind for _, kind in self._open}
        if not shown or "unseen" in kinds or "record" in kinds:
            return
        if "elsewhere" in kinds:
            self.left_out += len(numbers_in(shown))
            return
        place = ", ".join(part for part in (self._section, self._row, self._column) if part)
        self.texts.append((place, shown))
