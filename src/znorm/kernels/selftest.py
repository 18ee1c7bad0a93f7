"""One test for all backends: what is about to be used is tried once, on a few numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from znorm.kernels.base import Backend, Coefficients, StepContext, UpdateRule
from znorm.layers import LayerSlice
from znorm.transforms.base import ZScore

__all__ = ["fault"]


def fault(
    backend: Backend, dtype: torch.dtype, device: torch.device, rule: UpdateRule | None = None
) -> str | None:
    """The fault of a backend's kernels for a dtype, or for steps of a rule; None if they are right.

    Kernels are compiled here. What they raise is told in one line; None if they are right.

    Raises
    ------
    torch.OutOfMemoryError
        If there was no memory to try them in: they can be tried again.
    """
    with backend.first_use(dtype, device):
        try:
            tried = (
                _transforms(backend, dtype, device)
                if rule is None
                else _update(backend, dtype, device, rule)
            )
            for what, numbers, right in tried:
                if numbers != right:
                    return f"{what} came out as {numbers}, and {right} is right"
        except Exception as error:
            if _is_out_of_memory(error):
                raise  # which says nothing of the kernels
            return " ".join(str(error).split())[:200] or type(error).__name__
    return None


def _is_out_of_memory(error: Exception) -> bool:
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or (isinstance(error, RuntimeError) and "out of memory" in str(error).lower())


_Tried = Iterator[tuple[str, list[float], list[float]]]


def _transforms(backend: Backend, dtype: torch.dtype, device: torch.device) -> _Tried:
    """The transforms that are tried: their name, what came out, and what is right."""
    gradient = torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=dtype, device=device)
    whole = LayerSlice(None, (4,), (), 0)
    measuring = backend.batch([0], [gradient], [(whole,)], units=1, measures=True)
    moments = torch.zeros(2, 1, dtype=torch.float64, device=device)
    measuring.measure([gradient], moments)
    yield "moments", moments.flatten().tolist(), [3.0, 14.0]
    centered = gradient.clone()
    measuring.normalize_([centered], ZScore(scale=False), StepContext())
    yield "a centered tensor", centered.tolist(), [-2.0, -1.0, 0.0, 3.0]
    mapped = gradient.clone()
    mapping = backend.batch([0], [mapped], [(whole,)], units=1, measures=False)
    mapping.apply_affine_([mapped], _coefficients(device, 1.0, 0.5))
    yield "an affine map", mapped.tolist(), [0.0, 0.5, 1.0, 2.5]


def _update(backend: Backend, dtype: torch.dtype, device: torch.device, rule: UpdateRule) -> _Tried:
    """A step of the rule that can be told beforehand."""
    gradient = torch.tensor(rule.trial.gradient, dtype=dtype, device=device)
    weights = torch.zeros_like(gradient)
    group = dict(rule.trial.group)
    state: dict[str, Any] = {}
    initialized = rule.init_state(group, state, weights)
    batch = backend.batch([0], [gradient], [()], units=0, measures=False)
    batch.bind_state(rule, [weights], [state], [0], [initialized])
    nothing = torch.zeros(0, dtype=torch.float64, device=device)
    batch.update_(
        [gradient], [rule.hyperparameters(group)], Coefficients(nothing, nothing), StepContext()
    )
    yield f"weights after a step of {rule.name}", weights.tolist(), list(rule.trial.weights)


def _coefficients(device: torch.device, center: float, scale: float) -> Coefficients:
    return Coefficients(
        *(torch.full((1,), value, dtype=torch.float64, device=device) for value in (center, scale))
    )
