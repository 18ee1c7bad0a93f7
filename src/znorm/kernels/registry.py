"""The choice between kernels: which backend serves which tensors, and why not.

`reference` is torch operations on any device. `cpu` is compiled by numba, from the extra
``znorm[cpu]``; `triton` comes with torch on Linux. ``ZNORM_KERNELS=reference`` in the environment
leaves both alone; ``ZNORM_KERNELS=triton`` takes those for a GPU on a CPU, too, where
``TRITON_INTERPRET=1`` lets them run.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from znorm._torch_internals import is_traced
from znorm.kernels import memory, reference
from znorm.kernels.base import Backend, KernelBatch, UpdateRule
from znorm.kernels.selftest import fault
from znorm.layers import LayerSlice

__all__ = ["backend_for", "batches", "can_update", "name_of", "name_on", "why_not"]


@dataclass(frozen=True)
class _Source:
    """The source of a backend: a module with a ``BACKEND``, and the package it needs."""

    module: str
    name: str
    package: str
    hint: str


# By the type of device that each serves.
_SOURCES = {
    "cpu": _Source("znorm.kernels.cpu", "cpu", "numba", "pip install 'znorm[cpu]' brings numba"),
    "cuda": _Source("znorm.kernels.triton", "triton", "triton", "it comes with torch on Linux"),
}
# Those that any backend takes; each says its own once it is loaded.
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_ASKED = "ZNORM_KERNELS"
_TURNED_OFF = f"{_ASKED}=reference is set"

_lock = threading.Lock()
_loaded: dict[str, Backend] = {}  # by type of device
_refused: dict[str, str] = {}  # why they are not used, once they have been tried
# What has been tried, and whether it is right: by type of device, dtype, device and rule.
_tried: dict[tuple[str, torch.dtype, torch.device, str | None], bool] = {}


def backend_for(kind: str = "cpu") -> Backend | None:
    """The compiled kernels for a type of device, loaded on first use; None where there are none.

    Warns
    -----
    UserWarning
        Once, if numba or Triton is missing or cannot be loaded.
    """
    # What torch.compile traces is torch's to compile.
    if kind in _refused or kind not in _SOURCES or is_traced():
        return None
    if kind not in _loaded:
        with _lock:
            if kind not in _loaded and kind not in _refused:
                loaded = _load(kind)
                if isinstance(loaded, str):
                    _refused[kind] = loaded
                else:
                    _loaded[kind] = loaded
    return _loaded.get(kind)


def _load(kind: str) -> Backend | str:
    """The backend, or why there is none."""
    if _asked() == "reference":
        return _TURNED_OFF
    source = _source(kind)
    try:
        # Triton's own interpreter runs what is meant for a GPU: for whoever tests these kernels.
        if source is not _SOURCES[kind] and os.environ.get("TRITON_INTERPRET") != "1":
            raise RuntimeError("Triton runs on a CPU with TRITON_INTERPRET=1 alone")
        backend: Backend = import_module(source.module).BACKEND
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if isinstance(error, ImportError):
            reason += f"; {source.hint}"
        warnings.warn(
            f"znorm: the compiled kernels for {kind} are not used ({reason}); steps take the "
            f"slower reference kernels; {_ASKED}=reference silences this",
            stacklevel=2,
        )
        return reason
    return backend


def _source(kind: str) -> _Source:
    return _SOURCES["cuda" if _asked() == "triton" else kind]


def _asked() -> str:
    return os.environ.get(_ASKED, "")


def batches(
    tensors: Sequence[Tensor | None],
    slices: Sequence[Sequence[LayerSlice]],
    *,
    units: int,
    measures: bool,
    everything: bool,
    weights: bool = False,
    cache: dict[Any, tuple[Any, list[KernelBatch]]],
) -> list[KernelBatch]:
    """The tensors that compiled kernels serve, by device and dtype.

    Parameters
    ----------
    tensors : sequence of Tensor or None
        In the order of a layout.
    slices : sequence of sequences of LayerSlice
        What of each is measured.
    units : int
        Of the layout.
    measures : bool
        Whether kernels measure units; else coefficients are given.
    everything : bool
        Whether tensors of which nothing is measured are among them.
    weights : bool, default False
        Whether these are weights, which are measured and never written.
    cache : dict
        Where batches are kept from step to step. They may hold tensors that are missing now.
    """
    made: list[KernelBatch] = []
    for kind in {tensor.device.type for tensor in tensors if tensor is not None}:
        backend = backend_for(kind)
        if backend is None:
            continue
        key = (kind, measures, everything, weights)
        # What a batch depends on. Addresses are written anew each time.
        rests_on = backend.rests_on()
        seen = [
            None if t is None else (t.dtype, t.stride(), t.device, type(t), t.is_neg())
            for t in tensors
        ]
        known = cache.get(key)
        if known is None or known[0][0] != rests_on or not _serve(known[0][1], seen):
            fitting = _by_device_and_dtype(backend, kind, tensors, slices, everything, weights)
            known = cache[key] = (
                (rests_on, seen),
                [
                    backend.batch(
                        indices,
                        [tensor for tensor in (tensors[i] for i in indices) if tensor is not None],
                        [slices[i] for i in indices],
                        units=units,
                        measures=measures,
                    )
                    for indices in fitting
                ],
            )
        made += known[1]
    return made


def _serve(made_for: Sequence[Any], seen: Sequence[Any]) -> bool:
    """True if batches that were made for some tensors serve these: the same, or fewer of them.

    What comes and goes, as the gradients of an expert do, must not cost new tables each time.
    """
    return made_for == seen or all(
        now is None or now == then for now, then in zip(seen, made_for, strict=True)
    )


def _by_device_and_dtype(
    backend: Backend,
    kind: str,
    tensors: Sequence[Tensor | None],
    slices: Sequence[Sequence[LayerSlice]],
    everything: bool,
    weights: bool,
) -> list[list[int]]:
    """The indices of tensors that one batch can hold, a list each."""
    devices = {t.device for t in tensors if t is not None and t.device.type == kind}
    together: list[list[int]] = []
    for device in sorted(devices, key=str):
        for dtype in backend.dtypes:
            indices = [
                index
                for index, (tensor, pieces) in enumerate(zip(tensors, slices, strict=True))
                if tensor is not None
                and tensor.device == device
                and tensor.dtype == dtype
                and (pieces or everything)
                and memory.fits(tensor, pieces, weights=weights)
            ]
            if indices and _is_ready(backend, dtype, device):
                together.append(indices)
    return together


def can_update(rule: UpdateRule, batch: KernelBatch, dtype: torch.dtype) -> bool:
    """True if a batch's backend can step by a rule; tries it at the first time.

    Warns
    -----
    UserWarning
        Once, if its kernels are wrong.
    """
    backend = _loaded[batch.device.type]
    return rule.name in backend.update_rules and _is_ready(backend, dtype, batch.device, rule)


def _is_ready(
    backend: Backend, dtype: torch.dtype, device: torch.device, rule: UpdateRule | None = None
) -> bool:
    """True if kernels for a dtype work on a device; compiles them at the first call.

    Warns
    -----
    UserWarning
        Once, if they do not.
    """
    key = (device.type, dtype, device, None if rule is None else rule.name)
    if key not in _tried:
        with _lock:
            if key not in _tried:
                reason = fault(backend, dtype, device, rule)
                _tried[key] = reason is None
                if reason is not None:
                    label, where = "CPU", str(dtype).removeprefix("torch.")
                    if device.type != "cpu":
                        label, where = "GPU", f"{where} on {device}"
                    warnings.warn(
                        f"znorm: the {label} kernels for {where} cannot be used ({reason}); "
                        f"steps take the slower reference kernels; {_ASKED}=reference silences "
                        "this",
                        stacklevel=2,
                    )
    return _tried[key]


def why_not(
    device: torch.device, dtype: torch.dtype, *, rule: UpdateRule | None = None, load: bool = True
) -> str | None:
    """The reason that keeps compiled kernels from tensors of a kind; None if nothing does.

    Parameters
    ----------
    device, dtype
    rule : UpdateRule, optional
        By which they are to step.
    load : bool, default True
        Whether they are tried, which can take seconds at the first time; else it is told as far
        as that goes without.
    """
    name = str(dtype).removeprefix("torch.")
    if device.type not in _SOURCES:
        return f"there are no compiled kernels for {device.type}"
    # Before any is loaded, which takes seconds.
    backend = _loaded.get(device.type)
    if backend is None and load and dtype in _DTYPES:
        backend = backend_for(device.type)
    dtypes = _DTYPES if backend is None else backend.dtypes
    if dtype not in dtypes:
        takes = ", ".join(str(kind).removeprefix("torch.") for kind in dtypes)
        return f"the compiled kernels take {takes}, not {name}"
    if backend is not None:
        if rule is not None and rule.name not in backend.update_rules:
            return f"the {backend.name} kernels have no update rule {rule.name!r}"
        for one in (None, rule):
            key = (device.type, dtype, device, None if one is None else one.name)
            works = _is_ready(backend, dtype, device, one) if load else _tried.get(key, True)
            if not works:
                return f"they cannot be compiled for {name} here"
        return None
    if load or device.type in _refused:
        return _refused.get(device.type)
    if _asked() == "reference":
        return _TURNED_OFF
    source = _SOURCES[device.type]
    return None if find_spec(source.package) else f"{source.package} is missing; {source.hint}"


def name_of(tensor: Tensor, slices: Sequence[LayerSlice]) -> str:
    """The name of the kernels that serve a tensor."""
    served = memory.has_stretches(tensor, slices)
    if not served or why_not(tensor.device, tensor.dtype, load=False) is not None:
        return reference.NAME
    return name_on(tensor.device)


def name_on(device: torch.device) -> str:
    """The name of the compiled kernels for a device, such as ``cpu`` or ``triton``."""
    return _source(device.type).name
