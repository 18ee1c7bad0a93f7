"""Threads of our own for the kernels.

Not numba's: its ``workqueue`` layer aborts the process where two Python threads step at once, and a
forked child that steps under its ``omp`` layer is killed.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

__all__ = ["alone", "run_together"]

_Job = tuple[Callable[..., None], int, int, tuple[Any, ...], "SimpleQueue[BaseException | None]"]

_busy = threading.Lock()
_inboxes: list[SimpleQueue[_Job]] = []


def run_together(
    function: Callable[..., None], threads: int, arguments: tuple[Any, ...], give_up: Any
) -> None:
    """Call ``function(thread, threads, *arguments)`` in so many threads at once, one of them this.

    The threads may wait for each other. ``give_up`` is called if this one cannot take part, so
    that they stop waiting.
    """
    done: SimpleQueue[BaseException | None] = SimpleQueue()
    while len(_inboxes) < threads - 1:
        inbox: SimpleQueue[_Job] = SimpleQueue()
        threading.Thread(target=_work, args=(inbox,), name="znorm-kernel", daemon=True).start()
        _inboxes.append(inbox)
    try:
        for thread in range(1, threads):
            _inboxes[thread - 1].put((function, thread, threads, arguments, done))
        function(0, threads, *arguments)
    except BaseException:  # Ctrl-C, too
        give_up()
        raise
    failed = [error for error in (done.get() for _ in range(1, threads)) if error is not None]
    if failed:
        raise failed[0]


def alone() -> threading.Lock:
    """Held by whoever uses the threads; another Python thread then goes without."""
    return _busy


def _work(inbox: SimpleQueue[_Job]) -> None:
    while True:
        function, thread, threads, arguments, done = inbox.get()
        try:
            function(thread, threads, *arguments)
        except BaseException as error:
            done.put(error)
        else:
            done.put(None)
        del function, arguments  # what they hold is let go before the next one comes


def _after_fork() -> None:
    # A child has none of its parent's threads, and perhaps a lock that one of them held.
    global _busy
    _busy = threading.Lock()
    _inboxes.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
