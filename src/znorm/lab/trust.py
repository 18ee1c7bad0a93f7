"""Whose code may run: names in a specification from a folder are data, as its weights are.

A model, loss or metric ``package.module:function``, a model of another library, a transform
``package.module:Class`` or an optimizer by its class's path is imported and called. That is done
where the user's own command or code names it, or allows it (``--trust-models``), and not because a
folder of runs says so, which anybody may have sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from znorm.lab import methods
from znorm.lab.errors import ConfigurationError
from znorm.lab.models import is_external
from znorm.lab.spec import RunSpec

__all__ = ["check", "external_names", "names_of", "trusted_names", "trusting"]

_EVERYTHING = "*"
_trusted: ContextVar[frozenset[str]] = ContextVar("trusted", default=frozenset())


def external_names(spec: RunSpec | Mapping[str, Any]) -> list[str]:
    """The names in a specification, resolved or not, that are code outside of this package.

    >>> external_names({"model": "nets:make", "optimizer": {"name": "torch.optim.NAdam"}})
    ['nets:make']
    """
    names = []
    for key in ("model", "optimizer", "loss"):
        named = spec.get(key) if isinstance(spec, Mapping) else getattr(spec, key)
        name = named.get("name") if isinstance(named, Mapping) else named
        if not isinstance(name, str):
            continue
        # torch's own optimizers are part of what runs anyway.
        elsewhere = "." in name and not name.startswith("torch.optim.")
        if elsewhere if key == "optimizer" else is_external(name):
            names.append(name)
    metrics = spec.get("metrics") if isinstance(spec, Mapping) else spec.metrics
    several = metrics.split(",") if isinstance(metrics, str) else metrics or ()
    names += [name.strip() for name in several if isinstance(name, str)]
    transform = spec.get("transform") if isinstance(spec, Mapping) else spec.transform
    return names + methods.external(transform)


def names_of(specs: Iterable[RunSpec]) -> list[str]:
    """The names of code outside of this package in several specifications."""
    return [name for spec in specs for name in external_names(spec)]


@contextmanager
def trusting(names: Iterable[str] = (), *, everything: bool = False) -> Iterator[None]:
    """While entered, code of these names may be imported and called, beside what was before."""
    more = {_EVERYTHING} if everything else set(names)
    token = _trusted.set(_trusted.get() | more)
    try:
        yield
    finally:
        _trusted.reset(token)


def trusted_names() -> list[str]:
    """The names that are trusted now, for another process to be told; :func:`trusting` takes it."""
    return sorted(_trusted.get())


def check(spec: RunSpec | Mapping[str, Any]) -> None:
    """Refuse a specification that names code which nobody asked for.

    Raises
    ------
    ConfigurationError
        Naming it, and saying how it is allowed.
    """
    trusted = _trusted.get()
    for name in external_names(spec):
        if name not in trusted and _EVERYTHING not in trusted:
            raise ConfigurationError(
                f"{name}: code that the specification names, and not this command; it was not "
                "imported (--trust-models allows it)"
            )
