"""``znorm`` and ``python -m znorm.lab``."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line; without the lab's packages say how to get them."""
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
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
