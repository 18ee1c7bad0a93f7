"""Runs that take turns in one process, a step each: on a GPU, where processes take turns too.

Each queues its steps on a stream of its own, and the GPU works on all of them at once; of several
processes it works on one at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable

from znorm.lab.errors import Interrupted

__all__ = ["NoRoomError", "Turns"]

# What is to be done for one run: begun when there is room for it, a step at each turn.
Part = Callable[[], Generator[None, None, None]]


class NoRoomError(Exception):
    """A run found no memory left beside others; it is begun again when there are fewer."""


class Turns:
    """Gives each part its turn, so many of them side by side.

    Parameters
    ----------
    most : int
        Side by side.
    fewer : callable (int)
        Told how many are side by side from now on, where memory was not enough for more.
    at_once : callable () -> bool
        Whether whoever interrupts does not want the others to save first.
    """

    def __init__(
        self, most: int, fewer: Callable[[int], None], at_once: Callable[[], bool]
    ) -> None:
        self._most, self._fewer, self._at_once = most, fewer, at_once
        self._at_work: deque[tuple[Part, Generator[None, None, None]]] = deque()

    @property
    def alone(self) -> bool:
        """True where the part that has its turn is the only one at work."""
        return not self._at_work

    def take(self, parts: Iterable[Part]) -> None:
        """Do all parts.

        Raises
        ------
        Interrupted
            Once every part that is at work has stopped by itself.
        """
        waiting, at_work = deque(parts), self._at_work
        interrupted: Interrupted | None = None
        try:
            while at_work or (waiting and interrupted is None):
                if waiting and len(at_work) < self._most and interrupted is None:
                    part = waiting.popleft()
                    at_work.appendleft((part, part()))
                part, steps = at_work.popleft()
                try:
                    next(steps)
                except StopIteration:
                    continue
                except NoRoomError:
                    waiting.appendleft(part)
                    self._most = len(at_work)
                    self._fewer(self._most)
                    continue
                except Interrupted as error:
                    if self._at_once():
                        raise
                    interrupted = error
                    continue
                at_work.append((part, steps))
        finally:
            while at_work:
                at_work.popleft()[1].close()
        if interrupted is not None:
            raise interrupted
