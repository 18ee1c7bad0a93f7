"""Ctrl-C and SIGTERM, turned into a request that the loop answers between two steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from znorm.lab.errors import Interrupted

__all__ = ["Interruption"]


class Interruption:
    """While entered, the first signal asks to stop and a second one stops at once.

    ``deferring`` says that a loop is at work which looks at ``requested``; otherwise the first
    signal stops at once too. In a thread other than the main one it does nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self.deferring = False
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

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested or not self.deferring:
            raise Interrupted
        self.requested = True
