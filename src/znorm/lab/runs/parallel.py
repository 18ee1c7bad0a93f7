"""Other processes that train runs of a grid side by side with this one.

Each goes through the whole grid (:mod:`znorm.lab.runs.worker`) and trains what nobody else is at; a
run is claimed by a lock on its folder, which ends with its process.
"""

from __future__ import annotations

import json
import os
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
def helped(
    runs: Sequence[Run], processes: int, side_by_side: int, workers: int | None
) -> Iterator[None]:
    """While entered, ``processes - 1`` others train runs of the grid, too, each so many at once.

    Where runs are on GPUs, each process has one of them for itself.

    They are waited for at the end; if that is left by an exception, or this process is killed, they
    save and stop.
    """
    count = min(processes, sum(run.result is None for run in runs)) - 1
    if count < 1:
        yield
        return
    # What this process may import because its user named it, they may.
    folders = [str(run.folder) for run in runs]
    threads = torch.get_num_threads()
    message = json.dumps([threads, workers, side_by_side, trusted_names(), folders])
    on_gpus = any(run.spec.device == "cuda" for run in runs)
    others: list[subprocess.Popen[bytes]] = []
    try:
        for number in range(1, count + 1):
            # -P: nothing is imported from the current folder because it lies there.
            command = [sys.executable, "-P", "-m", WORKER]
            # In a session of its own: Ctrl-C is for this process, which hands it on once.
            other = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                start_new_session=True,
                env=_sees_gpu(number) if on_gpus else None,
            )
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


def _sees_gpu(number: int) -> dict[str, str]:
    """The environment of a process that sees just one of the GPUs that this one sees."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = seen.split(",") if seen else [str(n) for n in range(torch.cuda.device_count())]
    return {**os.environ, "CUDA_VISIBLE_DEVICES": names[number].strip()}


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
