"""Other processes that train runs of a grid side by side with this one.

Each goes through the whole grid (:mod:`znorm.lab.runs.worker`) and trains what nobody else is at; a
run is claimed by a lock on its folder, which ends with its process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import torch

from znorm.lab.errors import Interrupted
from znorm.lab.runs.folder import Run
from znorm.lab.trust import trusted_names

__all__ = ["helped"]

WORKER = "znorm.lab.runs.worker"


@contextmanager
def helped(runs: Sequence[Run], jobs: int, workers: int | None) -> Iterator[None]:
    """While entered, ``jobs - 1`` other processes train runs of the grid, too.

    They are waited for at the end; if that is left by an exception, or this process is killed, they
    save and stop.
    """
    count = min(jobs, sum(run.result is None for run in runs)) - 1
    if count < 1:
        yield
        return
    # What this process may import because its user named it, they may.
    folders = [str(run.folder) for run in runs]
    message = json.dumps([torch.get_num_threads(), workers, trusted_names(), folders])
    others: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            # -P: nothing is imported from the current folder because it lies there.
            command = [sys.executable, "-P", "-m", WORKER]
            # In a session of its own: Ctrl-C is for this process, which hands it on once.
            other = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
            others.append(other)
            assert other.stdin is not None
            with suppress(BrokenPipeError):  # it may have ended already
                other.stdin.write(message.encode() + b"\n")
                other.stdin.flush()
        yield
        for other in others:
            other.wait()
    finally:
        for other in others:
            assert other.stdin is not None
            with suppress(BrokenPipeError):
                other.stdin.close()  # which tells it to stop
        for other in others:
            _wait(other)


def _wait(other: subprocess.Popen[bytes]) -> None:
    """Wait until it has saved and ended, whatever signals come; after three it is killed."""
    for patience in (True, True, True, False):
        try:
            if not patience:
                other.kill()
            other.wait()
            return
        except (Interrupted, KeyboardInterrupt):
            continue
