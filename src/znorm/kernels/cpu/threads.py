"""Threads of our own for the kernels.

Not numba's: its ``workqueue`` layer aborts the process where two Python threads step at once, and a
forked child that steps under its ``omp`` layer is killed.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

__all__ = ["alone", "run_together"]

_busy = threading.Lock()


class _Job:
    """One thread's share, done once however often it is handed out."""

    def __init__(self, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        self.function, self.arguments = function, arguments
        self.claim = threading.Lock()
        self.finished = False
        self.error: BaseException | None = None

    def do(self, done: SimpleQueue[None]) -> None:
        if not self.claim.acquire(blocking=False):
            return
        try:
            self.function(*self.arguments)
        except BaseException as error:
            self.error = error
        self.finished = True
        done.put(None)


_inboxes: list[SimpleQueue[tuple[_Job, SimpleQueue[None]]]] = []


def run_together(
    function: Callable[..., None],
    threads: int,
    arguments: tuple[Any, ...],
    give_up: Callable[[], None],
) -> None:
    """Call ``function(thread, threads, *arguments)`` in so many threads at once, one of them this.

    The threads may wait for each other. ``give_up`` is called if this one cannot take part, so
    that they stop waiting. None is at work any more when this returns, or raises what a signal
    handler has raised meanwhile.
    """
    while len(_inboxes) < threads - 1:
        inbox: SimpleQueue[tuple[_Job, SimpleQueue[None]]] = SimpleQueue()
        threading.Thread(target=_work, args=(inbox,), name="znorm-kernel", daemon=True).start()
        _inboxes.append(inbox)
    done: SimpleQueue[None] = SimpleQueue()
    jobs = [_Job(function, (thread, threads, *arguments)) for thread in range(1, threads)]
    failed: BaseException | None = None
    begun = False
    while True:
        try:
            if failed is not None:
                give_up()
            # Again after an exception: it cannot be told which of them were handed out before.
            for job, inbox in zip(jobs, _inboxes, strict=False):
                inbox.put((job, done))
            if not begun:
                begun = True
                function(0, threads, *arguments)
            while not all(job.finished for job in jobs):
                with suppress(Empty):
                    done.get(timeout=0.1)
            break
        except BaseException as error:  # Ctrl-C, too
            begun = True
            failed = failed or error
    failed = failed or next((job.error for job in jobs if job.error is not None), None)
    if failed is not None:
        raise failed


def alone() -> threading.Lock:
    """Held by whoever uses the threads; another Python thread then goes without."""
    return _busy


def _work(inbox: SimpleQueue[tuple[_Job, SimpleQueue[None]]]) -> None:
    while True:
        job, done = inbox.get()
        job.do(done)
        del job, done  # what they hold is let go before the next one comes


def _after_fork() -> None:
    # A child has none of its parent's threads, and perhaps a lock that one of them held.
    global _busy
    _busy = threading.Lock()
    _inboxes.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
