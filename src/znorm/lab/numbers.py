"""Numbers that were read from a file which anybody may have written."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["is_count", "is_number"]


def is_number(value: Any) -> bool:
    """Tell whether a value is a number that a page can show."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) < 1e300
        and math.isfinite(value)
    )


def is_count(value: Any) -> bool:
    """Tell whether a value is a whole number from 1."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 62
