"""The public names, and a warning, which fails the build, for each that the reference lacks."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import znorm

# What only the other modules of znorm.integrations use.
_INTERNAL = ("__init__", "clipping", "versions")


def modules() -> list[str]:
    """The modules whose `__all__` users import from, those that `__all__` itself names but one."""
    own = sorted(Path(znorm.__file__).parent.glob("integrations/*.py"))
    return [
        "znorm",
        "znorm.lab",
        *(f"znorm.integrations.{path.stem}" for path in own if path.stem not in _INTERNAL),
    ]


def public_names(module: str) -> Iterator[tuple[str, Any]]:
    """Each name of a module, and of the modules among these, as users write it."""
    loaded = import_module(module)
    for name in loaded.__all__:
        value = getattr(loaded, name)
        if isinstance(value, ModuleType):
            # What the package shows as well is there under that name.
            yield from (
                (inner, thing)
                for inner, thing in public_names(value.__name__)
                if inner.rpartition(".")[2] not in loaded.__all__
            )
        elif name != "__version__":
            yield f"{module}.{name}", value


def _check(app: Any, env: Any) -> None:
    from sphinx.ext.autodoc.mock import mock
    from sphinx.util import logging

    there = env.get_domain("py").objects
    with mock(app.config.autodoc_mock_imports):
        names = [name for module in modules() for name, _ in public_names(module)]
    for name in names:
        if name not in there:
            logging.getLogger(__name__).warning(
                "%s is public, and no page of docs/reference has it", name
            )


def setup(app: Any) -> dict[str, Any]:
    app.connect("env-check-consistency", _check)
    return {"parallel_read_safe": True}
