"""Reference kernels: torch operations only, on any device, at the full accuracy.

Statistics are sums of ``g - g_0`` in float64, ``g_0`` being one element of the unit. Plain sums
lose everything once the mean is large beside the deviation; shifted by an element they lose at
most a factor of the number of elements, since no element can be further from the mean than
``sqrt(n)`` standard deviations.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from znorm.kernels.rounding import store_

__all__ = [
    "NAME",
    "adam_",
    "apply_",
    "moments",
    "quick_apply_",
    "quick_moments",
    "sgd_",
    "split",
    "statistics_dtype",
]

NAME = "reference"

# Elements turned to float64 at a time on a CPU: 512 KiB, which stays in a core's L2 cache.
_CHUNK = 1 << 16

# Elements that each thread shifts at a time, for the same reason.
_SHIFTED = 1 << 17

# Elements whose squares are summed in float32.
_ROW = 256


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
    # A list: torch.compile cannot trace a generator here.
    units = math.prod([gradient.shape[d] for d in unit_dims])
    slices = gradient.permute(*unit_dims, *rest).reshape(units, -1)
    shift = slices[:, 0].to(dtype)
    deviation = slices.to(dtype, copy=True).sub_(shift[:, None])
    return _finish(shift, deviation.sum(1), deviation.square().sum(1), slices.shape[1])


def _finish(shift: Tensor, total: Tensor, squares: Tensor, n: int) -> tuple[Tensor, Tensor]:
    # clamp passes NaN on, and keeps a rounding error from making a negative sum of squares.
    m2 = (squares - total.square() / n).clamp(min=0)
    return shift + total / n, m2


def quick_moments(gradient: Tensor) -> tuple[float, float] | None:
    """Mean and sum of squared deviations, in one reading in float32, if that loses nothing.

    Elements are shifted by the mean of some of them. What is left has a mean of nearly 0, so that
    float32 holds its sums, row by row; where it has not, or its squares leave the range of
    float32, :func:`moments` measures it in float64.

    Parameters
    ----------
    gradient : Tensor
        float32, on a CPU, dense in memory, at least one element.

    Returns
    -------
    mean, m2 : float, or None
    """
    flat = _memory_order(gradient)
    n = flat.numel()
    chunks = _in_cache(flat)
    shift = float(chunks[0].mean())
    total = squares = 0.0
    scratch = torch.empty_like(chunks[0])
    for chunk in chunks:
        deviation = torch.sub(chunk, shift, out=scratch[: chunk.numel()])
        total += float(deviation.sum())
        squares += _sum_of_squares(deviation)
    left = total / n
    m2 = squares - total * left
    # Not if the rest of the mean is beyond a standard deviation, or anything is not finite.
    if not max(left**2, 1e-30) * n <= m2 < 1e30 * n:
        return None
    return shift + left, m2


def _in_cache(flat: Tensor) -> tuple[Tensor, ...]:
    size = _SHIFTED * torch.get_num_threads()
    return flat.split(size) if flat.numel() > size else (flat,)


def _sum_of_squares(values: Tensor) -> float:
    """By rows in float32, which are short enough to lose nothing; rows are added in float64."""
    rows = values.numel() // _ROW
    total = 0.0
    if rows:
        norms = torch.linalg.vector_norm(values[: rows * _ROW].view(rows, _ROW), dim=1).double()
        total = float(torch.dot(norms, norms))
    if values.numel() > rows * _ROW:
        total += float(torch.linalg.vector_norm(values[rows * _ROW :])) ** 2
    return total


def quick_apply_(gradient: Tensor, center: float, scale: float, *, near: bool) -> None:
    """``g = (g - center) * scale`` in place, in one reading.

    Parameters
    ----------
    gradient : Tensor
        As for :func:`quick_moments`.
    center, scale : float
        In float64: the center is subtracted in two parts, as :func:`split` has it.
    near : bool
        Whether the center is within a standard deviation of 0.
    """
    flat = _memory_order(gradient)
    if near:
        # Subtracted after the scaling the center then costs no more than a rounding of the result.
        torch.add(flat.new_tensor(-center * scale), flat, alpha=scale, out=flat)
        return
    high = float(torch.tensor(center, dtype=torch.float32))
    # What is left of the center is that small that it may be subtracted after the scaling.
    offset = flat.new_tensor((high - center) * scale)
    for chunk in _in_cache(flat):
        torch.add(offset, chunk.sub_(high), alpha=scale, out=chunk)


def _memory_order(tensor: Tensor) -> Tensor:
    """One-dimensional, in the order of memory: no copy for any dense memory format."""
    if tensor.is_contiguous():
        return tensor.view(-1)
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


def _wide(tensor: Tensor) -> Tensor:
    """A copy in float32 or wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32), copy=True)


def adam_(
    parameter: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    max_exp_avg_sq: Tensor | None,
    step: Tensor,
    *,
    lr: float | Tensor,
    betas: tuple[float | Tensor, float | Tensor],
    eps: float,
    weight_decay: float,
    decoupled: bool,
    maximize: bool,
    skip: Tensor | None,
) -> None:
    """One step of Adam in float32 or wider; bfloat16 results are rounded stochastically.

    Parameters
    ----------
    parameter, exp_avg, exp_avg_sq, max_exp_avg_sq : Tensor
        Written; ``max_exp_avg_sq`` is there with AMSGrad.
    gradient : Tensor
        Read alone.
    step : Tensor of one element
        Counted up by one.
    lr, betas, eps, weight_decay, maximize
        As in ``torch.optim.Adam``.
    decoupled : bool
        Whether the decay is AdamW's.
    skip : Tensor of one element, optional
        Where it is not 0 nothing changes; it is not waited for.
    """
    go = 1.0 if skip is None else (skip == 0).to(step)
    step += go
    p, m, v = _wide(parameter), _wide(exp_avg), _wide(exp_avg_sq)
    g = _wide(gradient)
    if maximize:
        g.neg_()
    if weight_decay and decoupled:
        p.mul_(1 - lr * weight_decay)
    elif weight_decay:
        g.add_(p, alpha=weight_decay)
    beta1, beta2 = betas
    m.mul_(beta1).add_(g.mul(1 - beta1))
    v.mul_(beta2).add_(g.square().mul_(1 - beta2))
    t = step.to(p)
    second = v if max_exp_avg_sq is None else torch.maximum(_wide(max_exp_avg_sq), v)
    denominator = second.sqrt().div_((1 - beta2**t).sqrt()).add_(eps)
    p.sub_(m.div(denominator).mul_(lr / (1 - beta1**t)))
    _finish_step(((parameter, p), (exp_avg, m), (exp_avg_sq, v)), skip)
    if max_exp_avg_sq is not None:
        _finish_step(((max_exp_avg_sq, second),), skip)


def sgd_(
    parameter: Tensor,
    gradient: Tensor,
    momentum_buffer: Tensor | None,
    *,
    first: bool,
    lr: float | Tensor,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    skip: Tensor | None,
) -> None:
    """One step of SGD in float32 or wider; bfloat16 results are rounded stochastically.

    Parameters
    ----------
    parameter, momentum_buffer : Tensor
        Written; the buffer is there with momentum.
    gradient : Tensor
        Read alone.
    first : bool
        Whether this step sets the buffer to the gradient.
    lr, momentum, dampening, weight_decay, nesterov, maximize
        As in ``torch.optim.SGD``.
    skip : Tensor of one element, optional
        As in :func:`adam_`.
    """
    p, g = _wide(parameter), _wide(gradient)
    if maximize:
        g.neg_()
    if weight_decay:
        g.add_(p, alpha=weight_decay)
    written = [(parameter, p)]
    if momentum_buffer is not None:
        b = (
            g.clone()
            if first
            else _wide(momentum_buffer).mul_(momentum).add_(g, alpha=1 - dampening)
        )
        written.append((momentum_buffer, b))
        g = g.add_(b, alpha=momentum) if nesterov else b
    p.sub_(g * lr)
    _finish_step(written, skip)


def _finish_step(written: Iterable[tuple[Tensor, Tensor]], skip: Tensor | None) -> None:
    for target, result in written:
        if skip is not None:
            result = torch.where(skip.to(result.device) == 0, result, target.to(result.dtype))
        store_(target, result)
