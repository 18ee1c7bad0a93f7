"""The prospects of so many seeds, before they are paid for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from znorm.lab.stats import detectable, half_width, half_width_at_any_time, power, smallest_p

__all__ = ["Prospect", "prospects"]

_FURTHER = (3, 5, 8, 12, 20, 30, 50)


@dataclass(frozen=True)
class Prospect:
    """The prospects of a number of pairs.

    Parameters
    ----------
    pairs : int
    smallest_p : float
        That the sign-flip test can reach.
    half : float
        Half the 95 % interval of the mean difference.
    detectable : float
        The difference that a t test finds in four of five comparisons.
    power : float
        The chance that it finds a difference of what is worth adopting.
    """

    pairs: int
    smallest_p: float
    half: float
    detectable: float
    power: float


def prospects(
    pairs: int, spread: float, worth: float, *, sequential: bool = False
) -> list[Prospect]:
    """The prospects of these pairs and of more.

    Parameters
    ----------
    pairs : int
    spread : float
        The standard deviation of differences between paired runs.
    worth : float
        In the same unit.
    sequential : bool
        Whether intervals are to hold at all looks at once.
    """
    width = half_width_at_any_time if sequential else half_width
    numbers: Sequence[int] = [pairs, *(number for number in _FURTHER if number > pairs)]
    return [
        Prospect(
            number,
            smallest_p(number),
            width(number, spread),
            detectable(number, spread),
            power(number, worth, spread),
        )
        for number in numbers
    ]
