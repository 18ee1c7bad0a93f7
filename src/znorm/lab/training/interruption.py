"""Ctrl-C and SIGTERM, turned into a request that the loop answers between two steps."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from znorm.lab.errors import Interrupted

__all__ = ["Interruption"]

TOGETHER = 1.0  # seconds in which signals count as one


class Interruption:
    """While entered, the first signal asks to stop and a second one stops at once.

    ``deferring`` says that a loop is at work which looks at ``requested``; otherwise the first
    signal stops at once too. In a thread other than the main one it does nothing.

    What ``timeout`` or a terminal sends twice, to a process and to its group, is one signal.
    """

    def __init__(self) -> None:
        self.requested = False
        self.deferring = False
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
    def held_back(self) -> Iterator[None]:
        """While entered, a signal waits: what is being written would be left half done."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
        if self._held:
            self._held = False
            raise Interrupted

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first, last, self._at = not self.requested, self._at, time.monotonic()
        self.requested = True
        if not first and self._at - last < TOGETHER:
            return
        if first and self.deferring:
            return
        if not self._holding:
            raise Interrupted
        self._held = True
