"""Other processes that take part in a grid of runs: ``python -m znorm.lab.helpers``.

Each goes through the whole grid and trains what nobody else is at; a run is claimed by a lock on
its folder, which ends with its process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import torch

from znorm.lab.errors import Interrupted, LabError
from znorm.lab.store import Run

__all__ = ["helpers"]


@contextmanager
def helpers(runs: Sequence[Run], jobs: int, workers: int | None) -> Iterator[None]:
    """While entered, ``jobs - 1`` other processes train runs of the grid, too.

    They are waited for at the end; if that is left by an exception, they are asked to save and
    stop.
    """
    count = min(jobs, sum(run.result is None for run in runs)) - 1
    if count < 1:
        yield
        return
    threads = torch.get_num_threads()
    share = max(1, threads // (count + 1))
    told = json.dumps([share, workers, [str(run.folder) for run in runs]]).encode()
    others: list[subprocess.Popen[bytes]] = []
    try:
        torch.set_num_threads(share)
        for _ in range(count):
            other = subprocess.Popen(
                [sys.executable, "-m", "znorm.lab.helpers"], stdin=subprocess.PIPE
            )
            others.append(other)
            assert other.stdin is not None
            with suppress(BrokenPipeError), other.stdin as pipe:  # it may have ended already
                pipe.write(told)
        yield
        for other in others:
            other.wait()
    finally:
        torch.set_num_threads(threads)
        for other in others:
            if other.poll() is None:
                other.terminate()
        for other in others:
            other.wait()


def main() -> int:
    """Take part; a grid that fails is told by who started it."""
    from znorm.lab.comparison import execute
    from znorm.lab.progress import Silent

    threads, workers, folders = json.load(sys.stdin)
    torch.set_num_threads(threads)
    try:
        execute([Run.open(folder) for folder in folders], Silent(), workers)
    except (Interrupted, KeyboardInterrupt):
        return 130
    except LabError as error:
        print(f"znorm: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
