"""Versions of packages, as they are installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

__all__ = ["version_of"]


def version_of(package: str) -> str | None:
    """A package's version; None where it is not installed, on ``PYTHONPATH`` alone for example."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
