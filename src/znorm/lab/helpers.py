"""Other processes that take part in a grid of runs: ``python -m znorm.lab.helpers``.

Each goes through the whole grid and trains what nobody else is at; a run is claimed by a lock on
its folder, which ends with its process.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import torch

from znorm.lab.errors import Interrupted, LabError
from znorm.lab.store import Run
from znorm.lab.trust import trusted_names, trusting

__all__ = ["helpers"]


@contextmanager
def helpers(runs: Sequence[Run], jobs: int, workers: int | None) -> Iterator[None]:
    """While entered, ``jobs - 1`` other processes train runs of the grid, too.

    They are waited for at the end; if that is left by an exception, or this process is killed, they
    save and stop.
    """
    count = min(jobs, sum(run.result is None for run in runs)) - 1
    if count < 1:
        yield
        return
    # What this process may import because its user named it, they may.
    told_ = [torch.get_num_threads(), workers, trusted_names(), [str(run.folder) for run in runs]]
    told = json.dumps(told_).encode() + b"\n"
    others: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            # -P: nothing is imported from the current folder because it lies there.
            command = [sys.executable, "-P", "-m", "znorm.lab.helpers"]
            # In a session of its own: Ctrl-C is for this process, which hands it on once.
            other = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
            others.append(other)
            assert other.stdin is not None
            with suppress(BrokenPipeError):  # it may have ended already
                other.stdin.write(told)
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


def main() -> int:
    """Take part; what goes wrong is told by who started it, once it gets there."""
    from znorm.lab.comparison import execute
    from znorm.lab.progress import Silent

    threads, workers, trusted, folders = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    try:
        with trusting(trusted):
            execute([Run.open(folder) for folder in folders], Silent(), workers)
    except (Interrupted, KeyboardInterrupt):
        return 130
    except LabError as error:
        return error.exit_code
    return 0


def _stop_with_parent() -> None:
    """Save and stop once the pipe from who started this is closed, as it is when that dies."""
    # From the file itself: a reader that a thread is blocked in hinders Python's end.
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
