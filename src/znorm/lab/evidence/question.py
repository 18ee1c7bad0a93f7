"""The question that a comparison was begun with: kept beside its runs, before the first of them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from znorm.lab.errors import ConfigurationError, DataError
from znorm.lab.evidence.pairs import REFERENCE
from znorm.lab.runs.files import read_json, write_atomically

__all__ = ["WORTH", "Question"]

_NAME = "question.json"
WORTH = 0.01  # a point


@dataclass(frozen=True)
class Question:
    """Is a method better than the baseline, by so much that it matters?

    Parameters
    ----------
    method : str
    worth : float
        The smallest gain that is worth adopting it, in the unit of the score: 0.01 is a point of
        accuracy.
    sequential : bool
        Whether seeds were once added until something was decided: what has been looked at as it
        came is not unseen again.
    earlier : tuple of (str, float)
        Methods and gains that were asked of before, the first one first.
    """

    method: str
    worth: float = WORTH
    sequential: bool = False
    earlier: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        if self.method == REFERENCE:
            raise ConfigurationError("a question is of a method beside the baseline")
        worth: Any = self.worth
        number = isinstance(worth, int | float) and not isinstance(worth, bool)
        if not number or not (math.isfinite(worth) and 0 < worth < 1):
            raise ConfigurationError(
                f"worth: expected a gain above 0 and below 1, such as 0.01 for a point, found "
                f"{worth!r}"
            )

    @classmethod
    def of(
        cls, methods: Iterable[str], worth: float = WORTH, *, sequential: bool = False
    ) -> Question | None:
        """The question that these methods ask: of ZNorm, or of the first beside the baseline."""
        others = [method for method in dict.fromkeys(methods) if method != REFERENCE]
        if not others:
            return None
        return cls("znorm" if "znorm" in others else others[0], worth, sequential)

    def after(self, kept: Question | None) -> Question:
        """This question in a folder where another one was kept."""
        if kept is None:
            return self
        before = (kept.method, kept.worth)
        changed = before != (self.method, self.worth)
        return replace(
            self,
            sequential=self.sequential or kept.sequential,
            earlier=(*kept.earlier, before) if changed else kept.earlier,
        )

    @classmethod
    def read(cls, root: Path) -> Question | None:
        """That of a folder; None where none was kept.

        Raises
        ------
        DataError
            If it cannot be read.
        """
        path = root / _NAME
        try:
            content = read_json(path)
        except FileNotFoundError:
            return None
        try:
            if not isinstance(content["method"], str) or not isinstance(
                content["sequential"], bool
            ):
                raise TypeError
            earlier = tuple(
                (str(method), float(worth)) for method, worth in content.get("earlier", ())
            )
            return cls(**{**content, "earlier": earlier})
        except (TypeError, KeyError, ValueError):  # ConfigurationError is one
            raise DataError(
                f"{path}: not the question of a comparison; move it away, and it is asked anew"
            ) from None

    def write(self, root: Path) -> None:
        """Keep it, in place of an earlier one."""
        content = asdict(self)
        if not self.earlier:
            del content["earlier"]
        write_atomically(root / _NAME, (json.dumps(content, indent=2) + "\n").encode())
