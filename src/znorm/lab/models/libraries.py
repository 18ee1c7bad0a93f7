"""Libraries that only some models need, imported when such a model is."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from znorm.lab.errors import ConfigurationError

__all__ = ["cause", "load"]


def load(module: str, *, model: str, install: str) -> Any:
    """Import a module of a library that need not be there.

    Parameters
    ----------
    module : str
        As ``timm`` or ``monai.networks.nets``.
    model : str
        The model that needs it, for the message.
    install : str
        The library's name for pip.

    Raises
    ------
    ConfigurationError
        If the library is missing, or fails on import.

    Examples
    --------
    >>> load("math", model="resnet20", install="nothing").sqrt(4.0)
    2.0
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name == module.partition(".")[0]:
            # Unpinned, these libraries replace torch itself by the newest one.
            pin = f"torch=={torch.__version__.partition('+')[0]}"
            raise ConfigurationError(
                f"model {model} needs {install}, which is not installed; "
                f"pip install {install} {pin} (without the pin, torch may be replaced)"
            ) from None
        raise _broken(model, install, error) from error
    # Anything: a library built for another torch fails with RuntimeError, OSError and more.
    except (Exception, SystemExit) as error:
        raise _broken(model, install, error) from error


def _broken(model: str, install: str, error: BaseException) -> ConfigurationError:
    return ConfigurationError(
        f"model {model} needs {install}, which is installed but cannot be imported here: "
        f"{cause(error)}"
    )


def cause(error: BaseException) -> str:
    """An error in one line of at most 200 characters.

    Examples
    --------
    >>> cause(ValueError("bad\\nworse"))
    'ValueError: bad'
    """
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
