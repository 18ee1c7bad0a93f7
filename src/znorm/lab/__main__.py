"""``znorm`` and ``python -m znorm.lab``."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from znorm.lab.errors import INTERRUPTED

__all__ = ["main"]


def main() -> None:
    """Run the command line; without the lab's packages say how to get them."""
    # Importing torch and the lab takes seconds, in which nothing is there to be saved yet and
    # some modules swallow a KeyboardInterrupt: the process ends at once.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    try:
        from znorm.lab.cli import run
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("znorm"):
            raise
        print(
            f"znorm: the command line needs {error.name}; pip install 'znorm[lab]'",
            file=sys.stderr,
        )
        sys.exit(2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        code = 130  # another one, while the first was being told
    # Python ends its threads and files now: a signal would end it with a traceback instead.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code)


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, f"{INTERRUPTED}\n".encode())
    os._exit(130)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
