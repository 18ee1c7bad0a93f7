"""Reference kernels: torch operations only, on any device, at the full accuracy.

Statistics are sums of ``g - g_0`` in float64, ``g_0`` being one element of the unit. Plain sums
lose everything once the mean is large beside the deviation; shifted by an element they lose at
most a factor of the number of elements, since no element can be further from the mean than
``sqrt(n)`` standard deviations.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["NAME", "apply_", "moments", "split", "statistics_dtype"]

NAME = "reference"

# Elements turned to float64 at a time on a CPU: 512 KiB, which stays in a core's L2 cache.
_CHUNK = 1 << 16


def statistics_dtype(device: torch.device) -> torch.dtype:
    """float64 where the device has it (MPS has not)."""
    return torch.float32 if device.type == "mps" else torch.float64


def moments(gradient: Tensor, unit_dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mean and sum of squared deviations of each unit of one gradient.

    Parameters
    ----------
    gradient : Tensor
        Dense, at least one element.
    unit_dims : tuple of int
        The dims that number the units; ``()`` for the whole tensor as one unit.

    Returns
    -------
    mean, m2 : Tensor of shape (units,)
    """
    if unit_dims:
        return _moments_of_slices(gradient, unit_dims)
    return _moments_of_tensor(gradient)


def _moments_of_tensor(gradient: Tensor) -> tuple[Tensor, Tensor]:
    dtype = statistics_dtype(gradient.device)
    flat = _memory_order(gradient)
    n = flat.numel()
    shift = flat[0].to(dtype)
    chunks = flat.split(_CHUNK) if gradient.device.type == "cpu" and n > _CHUNK else (flat,)
    total = shift.new_zeros(())
    squares = shift.new_zeros(())
    for chunk in chunks:
        deviation = chunk.to(dtype, copy=True).sub_(shift)
        total = total + deviation.sum()
        squares = squares + torch.dot(deviation, deviation)
    return _finish(shift, total, squares, n)


def _moments_of_slices(gradient: Tensor, unit_dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    dtype = statistics_dtype(gradient.device)
    rest = [d for d in range(gradient.dim()) if d not in unit_dims]
    units = math.prod(gradient.shape[d] for d in unit_dims)
    slices = gradient.permute(*unit_dims, *rest).reshape(units, -1)
    shift = slices[:, 0].to(dtype)
    deviation = slices.to(dtype, copy=True).sub_(shift[:, None])
    return _finish(shift, deviation.sum(1), deviation.square().sum(1), slices.shape[1])


def _finish(shift: Tensor, total: Tensor, squares: Tensor, n: int) -> tuple[Tensor, Tensor]:
    # clamp passes NaN on, and keeps a rounding error from making a negative sum of squares.
    m2 = (squares - total.square() / n).clamp(min=0)
    return shift + total / n, m2


def _memory_order(tensor: Tensor) -> Tensor:
    """One-dimensional, in the order of memory: no copy for any dense memory format."""
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    return tensor.permute(order).reshape(-1)


def split(center: Tensor, scale: Tensor, dtype: torch.dtype) -> tuple[tuple[Tensor, ...], Tensor]:
    """Coefficients in the form in which gradients of ``dtype`` are transformed.

    Returns
    -------
    centers : tuple of Tensor
        To be subtracted one after the other. In float32 there are two, since one alone errs by up
        to 6e-8 of the mean: 0.06 standard deviations when the mean is a million of them.
    scale : Tensor
    """
    compute = center.dtype if dtype == center.dtype else torch.float32
    if compute == center.dtype:
        return (center,), scale
    high = center.to(compute)
    return (high, (center - high).to(compute)), scale.to(compute)


def apply_(gradient: Tensor, centers: tuple[Tensor, ...], scale: Tensor) -> None:
    """``g = (g - center) * scale`` in place, in float32 or wider, rounded once.

    Parameters
    ----------
    gradient : Tensor
        Written.
    centers, scale : Tensor
        Of :func:`split`, broadcast against ``gradient``.
    """
    wide = gradient if gradient.dtype == scale.dtype else gradient.to(scale.dtype)
    for center in centers:
        wide.sub_(center)
    wide.mul_(scale)
    if wide is not gradient:
        gradient.copy_(wide)
