"""One of the processes that share a grid of runs: ``python -m znorm.lab.runs.worker``.

Started by :mod:`znorm.lab.runs.parallel`, which writes a line to its standard input: threads,
loader threads, runs at once, what may be imported, and the folders of the runs.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading

import torch

from znorm.lab.errors import Interrupted, LabError
from znorm.lab.runs.folder import Run
from znorm.lab.runs.progress import Silent
from znorm.lab.runs.runner import execute
from znorm.lab.trust import trusting


def main() -> int:
    """Take part; errors are told by the process that started this one, once it gets there."""
    threads, workers, side_by_side, trusted, folders = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    try:
        with trusting(trusted):
            execute([Run.open(folder) for folder in folders], Silent(), workers, side_by_side)
    except (Interrupted, KeyboardInterrupt):
        return 130
    except LabError as error:
        return error.exit_code
    return 0


def _stop_with_parent() -> None:
    """Save and stop once the pipe from the parent process is closed, as it is when that dies."""
    # From the file itself: a reader that a thread is blocked in hinders Python's end.
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
