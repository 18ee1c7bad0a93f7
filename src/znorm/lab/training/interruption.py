"""Ctrl-C and SIGTERM, turned into a request that the loop answers between two steps."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, NoReturn

from znorm.lab.errors import Interrupted

__all__ = ["Interruption"]

TOGETHER = 1.0  # seconds in which signals count as one


class Interruption:
    """While entered, the first signal asks to stop and a second one stops at once.

    While a loop is at work that looks at ``requested`` (:meth:`deferred`), the first signal does
    nothing else; otherwise it stops at once too. In a thread other than the main one it does
    nothing.

    What ``timeout`` or a terminal sends twice, to a process and to its group, is one signal.

    Attributes
    ----------
    requested : bool
        Whether there was a signal.
    at_once : bool
        Whether what is at work was broken off, by a second one.
    """

    def __init__(self) -> None:
        self.requested = False
        self.at_once = False
        self._loops = 0
        self._at = 0.0
        self._holding = self._held = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """While entered, once or by several, a loop is at work that looks at ``requested``."""
        self._loops += 1
        try:
            yield
        finally:
            self._loops -= 1

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """While entered, a signal waits: what is being written would be left half done."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
        if self._held:
            self._held = False
            self._stop()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first, last, self._at = not self.requested, self._at, time.monotonic()
        self.requested = True
        if not first and self._at - last < TOGETHER:
            return
        if first and self._loops:
            return
        if not self._holding:
            self._stop()
        self._held = True

    def _stop(self) -> NoReturn:
        self.at_once = True
        raise Interrupted
