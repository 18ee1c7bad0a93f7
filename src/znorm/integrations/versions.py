"""The versions of each framework that the tests have run with, and a warning for any other."""

from __future__ import annotations

import functools
import re
import warnings
from importlib import metadata

from znorm._torch_internals import users_level

__all__ = ["TESTED", "warn_if_untested"]

# The oldest and the newest, as major and minor.
TESTED: dict[str, tuple[str, str]] = {
    "lightning": ("2.4", "2.6"),
    "optax": ("0.2", "0.2"),
    "pytorch-lightning": ("2.4", "2.6"),
    "transformers": ("4.57", "5.24"),
}


@functools.cache
def warn_if_untested(distribution: str) -> None:
    """Warn, once, if a framework is of a version outside of the range that is tested.

    Parameters
    ----------
    distribution : str
        Its name, of :data:`TESTED`.
    """
    found = metadata.version(distribution)
    oldest, newest = TESTED[distribution]
    if not _release(oldest) <= _release(found) <= _release(newest):
        warnings.warn(
            f"znorm: {distribution} {found} is outside of the versions that znorm is tested with, "
            f"{oldest} to {newest}; see by the receipt of a first step that the transform is on",
            stacklevel=users_level(),
        )


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])
