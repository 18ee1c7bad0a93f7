"""Warns of names that are going away, at the line of whoever still uses them.

The warning is a :class:`FutureWarning`, as torch's own are. Python shows a ``DeprecationWarning``
only where the line is in the script that was started or in a test; much training code is in neither
but in a module that a trainer imports, and would break without ever having been warned.

Each use says ``since`` which version the old name is deprecated and in which it is ``removed_in``.
A test fails once that version is reached, so that nothing stays longer than was said.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from importlib import import_module
from typing import Any, ParamSpec, TypeVar, cast

__all__ = ["Renamed", "deprecated", "renamed_attributes", "renamed_keyword"]

P = ParamSpec("P")
R = TypeVar("R")
Called = TypeVar("Called", bound=Callable[..., Any])


def deprecated(
    *, since: str, removed_in: str, instead: str
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a function warn when it is called.

    Parameters
    ----------
    since, removed_in : str
        Versions, such as "0.3" and "0.5".
    instead : str
        What to use, as the user would write it.

    Examples
    --------
    >>> @deprecated(since="0.3", removed_in="0.5", instead="znorm.z_score_")
    ... def normalize_(gradients):
    ...     return len(gradients)
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     normalize_([1.0])
    1
    >>> print(caught[0].message)
    normalize_ is deprecated since znorm 0.3 and goes in 0.5: use znorm.z_score_
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def warning(*args: P.args, **kwargs: P.kwargs) -> R:
            _warn(function.__qualname__, since, removed_in, instead)
            return function(*args, **kwargs)

        return warning

    return decorate


def renamed_keyword(
    old: str, new: str, *, since: str, removed_in: str
) -> Callable[[Called], Called]:
    """Let a function or a class take a keyword argument by its old name too, with a warning.

    Of a class it is an argument of ``__init__``. Its subclasses take the old name as far as they
    hand on what they are given.

    Parameters
    ----------
    old, new : str
        The name that goes, and that which is in the signature.
    since, removed_in : str
        As :func:`deprecated` takes them.

    Examples
    --------
    >>> @renamed_keyword("maximum", "limit", since="0.3", removed_in="0.5")
    ... def clip(gradient, limit):
    ...     return min(gradient, limit)
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     clip(3.0, maximum=1.0)
    1.0
    >>> print(caught[0].message)
    clip(maximum=...) is deprecated since znorm 0.3 and goes in 0.5: use limit=...
    """

    def decorate(called: Called) -> Called:
        if isinstance(called, type):
            # Seen as Any: a type checker forbids what every class decorator does.
            made: Any = called
            made.__init__ = _takes(made.__init__, called.__qualname__)
            return called
        return cast(Called, _takes(called, called.__qualname__))

    def _takes(function: Callable[P, R], name: str) -> Callable[P, R]:
        @functools.wraps(function)
        def taking(*args: P.args, **kwargs: P.kwargs) -> R:
            if old in kwargs:
                if new in kwargs:
                    raise TypeError(f"{name}: {old}= is the old name of {new}=; both were given")
                _warn(f"{name}({old}=...)", since, removed_in, f"{new}=...")
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return taking

    return decorate


@dataclass(frozen=True)
class Renamed:
    """A name of a module that has become another, which may be in another module.

    Parameters
    ----------
    old : str
        In the module itself: "normalize_".
    new : str
        From the top: "znorm.z_score_".
    since, removed_in : str
        As :func:`deprecated` takes them.
    """

    old: str
    new: str
    _: KW_ONLY
    since: str
    removed_in: str


def renamed_attributes(module: str, *renamed: Renamed) -> Callable[[str], Any]:
    """Make the ``__getattr__`` of a module that still answers to old names, with a warning.

    Functions, classes and constants alike are the very objects that the new names give, so that
    ``isinstance`` and pickles hold. ``from module import *`` does not bring them.

    Parameters
    ----------
    module : str
        The module's ``__name__``.
    *renamed : Renamed

    Examples
    --------
    At the end of a module::

        __getattr__ = renamed_attributes(
            __name__, Renamed("normalize_", "znorm.z_score_", since="0.3", removed_in="0.5")
        )

    >>> answer = renamed_attributes("m", Renamed("tau", "math.tau", since="0.3", removed_in="0.5"))
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     answer("tau")
    6.283185307179586
    >>> print(caught[0].message)
    m.tau is deprecated since znorm 0.3 and goes in 0.5: use math.tau
    """
    by_name = {one.old: one for one in renamed}

    def answer(name: str) -> Any:
        one = by_name.get(name)
        if one is None:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        home, _, attribute = one.new.rpartition(".")
        _warn(f"{module}.{name}", one.since, one.removed_in, one.new)
        return getattr(import_module(home), attribute)

    return answer


def _warn(what: str, since: str, removed_in: str, instead: str) -> None:
    # Here, since it imports torch, which the command line must be able to do without.
    from znorm._torch_internals import users_level

    warnings.warn(
        f"{what} is deprecated since znorm {since} and goes in {removed_in}: use {instead}",
        FutureWarning,
        stacklevel=users_level(),
    )
