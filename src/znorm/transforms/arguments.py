"""Checks of the arguments that transforms take: the type first, then the value."""

from __future__ import annotations

import math
from numbers import Real

__all__ = ["check_choice", "check_flag", "check_number", "set_fields"]


def set_fields(transform: object, **values: object) -> None:
    """Write fields of a frozen dataclass while it is being made, as its checks return them."""
    for name, value in values.items():
        object.__setattr__(transform, name, value)


def check_number(owner: str, name: str, value: object, *, above: float | None = None) -> float:
    """A finite number that is at least 0, or greater than ``above``: Python's, of whatever type.

    ``torch.load`` reads no number of NumPy with weights_only.

    Raises
    ------
    TypeError, ValueError
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{owner}: {name} must be a number, found {type(value).__name__} {value!r}")
    try:
        finite = math.isfinite(value)
    except OverflowError:
        finite = False
    if not finite:
        raise ValueError(f"{owner}: {name} must be finite, found {value!r}")
    if above is None and value < 0:
        raise ValueError(f"{owner}: {name} must be 0 or more, found {value!r}")
    if above is not None and value <= above:
        raise ValueError(f"{owner}: {name} must be greater than {above:g}, found {value!r}")
    return value if isinstance(value, int) else float(value)


def check_flag(owner: str, name: str, value: object) -> None:
    """Raise unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(
            f"{owner}: {name} must be True or False, found {type(value).__name__} {value!r}"
        )


def check_choice(owner: str, name: str, value: object, choices: tuple[object, ...]) -> None:
    """Raise unless ``value`` is one of ``choices``, which share one type."""
    wanted = " or ".join(repr(choice) for choice in choices)
    if type(value) is not type(choices[0]):
        raise TypeError(f"{owner}: {name} must be {wanted}, found {type(value).__name__} {value!r}")
    if value not in choices:
        raise ValueError(f"{owner}: {name} must be {wanted}, found {value!r}")
