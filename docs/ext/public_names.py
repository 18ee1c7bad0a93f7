"""A warning, which fails the build, for each public name that the reference does not have."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from sphinx.ext.autodoc.mock import mock
from sphinx.util import logging

log = logging.getLogger(__name__)


def public_names(mocked: list[str]) -> Iterator[str]:
    """Each name that users import, as the reference has it."""
    import znorm

    modules = ["znorm", "znorm.optim", "znorm.receipts", "znorm.transforms", "znorm.lab"]
    folder = Path(znorm.__file__).parent / "integrations"
    own = ("__init__", "clipping", "versions")
    modules += [f"znorm.integrations.{p.stem}" for p in folder.glob("*.py") if p.stem not in own]
    with mock(mocked):
        for module in modules:
            loaded = import_module(module)
            for name in loaded.__all__:
                value = getattr(loaded, name)
                # Modules have their own names; what both have stands in the reference once.
                if isinstance(value, type(znorm)) or name == "__version__":
                    continue
                if module != "znorm" and getattr(znorm, "__all__", []).count(name):
                    continue
                yield f"{module}.{name}"


def _check(app: Any, env: Any) -> None:
    there = env.get_domain("py").objects
    for name in public_names(app.config.autodoc_mock_imports):
        if name not in there:
            log.warning("%s is public, and no page of docs/reference has it", name)


def setup(app: Any) -> dict[str, Any]:
    app.connect("env-check-consistency", lambda app, env: _check(app, env))
    return {"parallel_read_safe": True}
