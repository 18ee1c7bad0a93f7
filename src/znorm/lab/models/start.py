"""Weights that a net starts from: read from a file as data, fitted to the net by name and shape.

The head may be for another number of classes: it then stays as it was drawn.
"""

from __future__ import annotations

import hashlib
import pickle
import warnings
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from znorm.lab.errors import ConfigurationError, DataError

__all__ = ["digest_of", "hash_state", "new_head", "read_start", "start_from"]

State = dict[str, Tensor]

# Where files of training scripts have the state among other things.
_PLACES = ("state_dict", "state", "model", "model_state_dict")
# Counts of batches, which old files do not have and no output depends on.
_MAY_LACK = "num_batches_tracked"
_SHOWN = 3


def hash_state(state: Mapping[str, Tensor]) -> str:
    """sha256 over the name, type, shape and bytes of each tensor of ``model.state_dict()``."""
    digest = hashlib.sha256()
    for name, tensor in state.items():
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
        digest.update(cast(Any, plain.reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


def digest_of(path: str) -> str:
    """The hash of the weights in a file, whatever it is called and however it is packed.

    Raises
    ------
    DataError
        As :func:`read_start`.
    """
    return _read(path, *_stamp(path))[1]


def read_start(path: str, digest: str) -> State:
    """The weights in a file, which are those of ``digest``.

    Raises
    ------
    DataError
        If the file is missing, holds something else than finite tensors by name, or others.
    """
    state, found = _read(path, *_stamp(path))
    if found != digest:
        raise DataError(
            f"start: {path}: holds other weights than the run was begun with; put those back, or "
            "begin in another folder for runs"
        )
    return state


def _stamp(path: str) -> tuple[int, int]:
    try:
        if not Path(path).is_file():
            kind = "a folder, not a file" if Path(path).is_dir() else "no such file"
            raise DataError(f"start: {path}: {kind}; give a state_dict as .pt or .safetensors")
        stat = Path(path).stat()
    except OSError as error:
        raise DataError(f"start: {path}: cannot be read ({error.strerror or error})") from None
    except ValueError as error:
        raise DataError(f"start: {path!r}: no path ({error})") from None
    return stat.st_mtime_ns, stat.st_size


@lru_cache(maxsize=1)
def _read(path: str, changed: int, size: int) -> tuple[State, str]:
    """The state and its hash; every run of a comparison starts from the same one."""
    del changed, size  # a file that was written anew is read anew
    try:
        loaded = _safetensors(path) if path.endswith(".safetensors") else _torch(path)
    except DataError:
        raise
    except Exception as error:
        # A file that was cut off or is of another kind fails in many ways; all mean the same.
        raise DataError(
            f"start: {path}: not a state_dict ({type(error).__name__}); save one with "
            "torch.save(model.state_dict(), ...)"
        ) from None
    state = _state_in(loaded)
    if state is None:
        raise DataError(
            f"start: {path}: holds no tensors by name; save model.state_dict(), not the model"
        )
    for name, tensor in state.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise DataError(f"start: {path}: {name} holds numbers that are not finite")
    # In the order of names: how a file was packed makes no other run.
    ordered = dict(sorted(state.items()))
    return ordered, hash_state(ordered)


def _torch(path: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, on how it was pickled
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise DataError(
            f"start: {path}: holds pickled code, or is cut off; it was not run: save "
            "model.state_dict() alone"
        ) from None


def _safetensors(path: str) -> Any:
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise DataError(
            f"start: {path}: reading it needs safetensors; pip install safetensors"
        ) from None
    return load_file(path)


def _state_in(loaded: Any) -> State | None:
    """The tensors by name in what a file holds; None if there are none."""
    if not isinstance(loaded, Mapping):
        return None
    inner = [loaded[key] for key in _PLACES if isinstance(loaded.get(key), Mapping)]
    found: Mapping[Any, Any] = inner[0] if inner else loaded
    usable = all(
        isinstance(key, str) and isinstance(value, Tensor) and value.layout is torch.strided
        for key, value in found.items()
    )
    if not found or not usable:
        return None
    prefix = "module."  # of torch's parallel wrappers
    wrapped = all(key.startswith(prefix) for key in found)
    return {key.removeprefix(prefix) if wrapped else key: value for key, value in found.items()}


def new_head(own: Mapping[str, Tensor], start: Mapping[str, Tensor], outputs: int) -> str | None:
    """The module whose weights are for another number of classes; None where all fit.

    Parameters
    ----------
    own, start : mapping
        The net's state, and what it is to start from.
    outputs : int
        Channels of the net's output.

    Raises
    ------
    ConfigurationError
        If they differ in a name, or in a shape otherwise.
    """
    lacks = [name for name in own if name not in start and not name.endswith(_MAY_LACK)]
    more = [name for name in start if name not in own]
    if lacks or more:
        parts = [f"lacks {_listed(lacks)}"] if lacks else []
        parts += [f"has {_listed(more)}, which the net has not"] if more else []
        raise ConfigurationError(
            f"start: the weights are of another net: the file {'; '.join(parts)}"
        )
    other = [name for name in start if start[name].shape != own[name].shape]
    homes = {name.rpartition(".")[0] for name in other}
    of_a_head = all(
        own[name].dim() > 0
        and own[name].shape[0] == outputs
        and start[name].shape[1:] == own[name].shape[1:]
        for name in other
    )
    if len(homes) > 1 or not of_a_head:
        name = other[0]
        raise ConfigurationError(
            f"start: the weights are of another net: {name} has shape {tuple(start[name].shape)} "
            f"in the file and {tuple(own[name].shape)} in the net"
        )
    return homes.pop() if homes else None


def _listed(names: list[str]) -> str:
    text = ", ".join(map(repr, names[:_SHOWN]))
    return text if len(names) <= _SHOWN else f"{text} and {len(names) - _SHOWN} more"


def start_from(model: nn.Module, start: Mapping[str, Tensor], outputs: int) -> str | None:
    """Put the weights into a net; the head that stays as it was drawn, as :func:`new_head` has it.

    Raises
    ------
    ConfigurationError
        As :func:`new_head`.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    >>> other = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 9))
    >>> start_from(net, other.state_dict(), outputs=4)
    '1'
    >>> bool((net[0].weight == other[0].weight).all())
    True
    """
    own = model.state_dict()
    head = new_head(own, start, outputs)
    fitting = {name: value for name, value in start.items() if value.shape == own[name].shape}
    model.load_state_dict({**own, **fitting})
    return head
