"""Tables as csv, which a spreadsheet shows and does not run."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

__all__ = ["dump", "load"]

# How a text begins that spreadsheets take for a formula, and one that looks escaped already.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")
# What a terminal would obey, half a character that UTF-8 has no bytes for, and a backslash that
# would be taken for the beginning of such a one. Bytes that are no text are another matter.
_RAW = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udc7f\udd00-\udfff]"
    r"|\\(?=x[0-9a-f]{2}|u[0-9a-f]{4})"
)
_CODED = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4}))")


def dump(rows: Sequence[Mapping[str, Any]]) -> bytes:
    r"""Rows with the same keys, one or more, below a line of the keys.

    A text that a spreadsheet would run as a formula, as a file's name may be one, gets a single
    quote before it; :func:`load` takes it away. Control characters but tabs and line ends are
    written as ``\x1b`` is, and read again as they were. Numbers stay as they are.

    Examples
    --------
    >>> dump([{"name": "=1+1", "score": -0.5}])
    b"name,score\n'=1+1,-0.5\n"
    """
    lines = [list(rows[0]), *(row.values() for row in rows)]
    cells = [[_escaped(value) for value in line] for line in lines]
    # Left to itself the writer leaves a carriage return bare, which then reads as the line's end.
    returns = any("\r" in cell for line in cells for cell in line if isinstance(cell, str))
    quoting: Literal[0, 2] = csv.QUOTE_NONNUMERIC if returns else csv.QUOTE_MINIMAL
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n", quoting=quoting).writerows(cells)
    # A file's name may be of bytes that are no text: they go out as they came.
    return buffer.getvalue().encode(errors="surrogateescape")


def load(content: bytes) -> list[dict[str, str]]:
    r"""The rows that :func:`dump` wrote, numbers as text.

    Raises
    ------
    ValueError
        If it is no csv, or if a line has more or fewer cells than the first.

    Examples
    --------
    >>> load(dump([{"name": "=1+1", "score": -0.5}]))
    [{'name': '=1+1', 'score': '-0.5'}]
    """
    text = content.decode("utf-8-sig", errors="surrogateescape")
    reader = csv.reader(io.StringIO(text, newline=""))
    rows = []
    try:
        keys = [_plain(cell) for cell in next(reader, [])]
        for cells in reader:
            if len(cells) not in (0, len(keys)):
                raise ValueError(
                    f"line {reader.line_num}: expected {len(keys)} cells, found {len(cells)}"
                )
            if cells:
                rows.append(dict(zip(keys, map(_plain, cells), strict=True)))
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from None
    return rows


def _escaped(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = _RAW.sub(_code, value)
    return f"'{text}" if _FORMULA.match(text) else text


def _code(match: re.Match[str]) -> str:
    number = ord(match[0])
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"


def _plain(text: str) -> str:
    bare = text[1:] if text.startswith("'") and _FORMULA.match(text) else text
    return _CODED.sub(lambda match: chr(int(match[1] or match[2], 16)), bare)
