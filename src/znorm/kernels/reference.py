"""Reference kernels: torch operations only, on any device, at the full accuracy.

Statistics are sums of ``g - g_0`` in float64, ``g_0`` being one element of the unit. Plain sums
lose everything once the mean is large beside the deviation; shifted by an element they lose at
most a factor of the number of elements, since no element can be further from the mean than
``sqrt(n)`` standard deviations.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from znorm._torch_internals import is_traced
from znorm.kernels.rounding import store_

__all__ = [
    "NAME",
    "adam_",
    "apply_",
    "finish",
    "moments",
    "sgd_",
    "split",
    "statistics_dtype",
]

NAME = "reference"

# Elements that a CPU takes at a time: in float64 1 MiB, which stays in the caches of its cores.
_CHUNK = 1 << 17


def statistics_dtype(device: torch.device) -> torch.dtype:
    """float64 where the device has it (MPS has not)."""
    return torch.float32 if device.type == "mps" else torch.float64


def moments(gradient: Tensor, unit_dims: tuple[int, ...]) -> Tensor:
    """Mean and sum of squared deviations of each unit of one gradient.

    Parameters
    ----------
    gradient : Tensor
        Dense, at least one element.
    unit_dims : tuple of int
        The dims that number the units; ``()`` for the whole tensor as one unit.

    Returns
    -------
    Tensor of shape (2, units)
    """
    if unit_dims:
        return _moments_of_slices(gradient, unit_dims)
    return _moments_of_tensor(gradient)


def _moments_of_tensor(gradient: Tensor) -> Tensor:
    dtype = statistics_dtype(gradient.device)
    flat = _memory_order(gradient)
    n = flat.numel()
    chunks = flat.split(_CHUNK) if gradient.device.type == "cpu" and n > _CHUNK else (flat,)
    if gradient.device.type == "cpu" and not (flat.requires_grad or is_traced()):
        mean, m2 = _plain_moments(chunks, n)
        if mean * mean * n <= m2 < math.inf:
            return torch.tensor([[mean], [m2]], dtype=dtype, device="cpu")
    shift = flat[0].to(dtype)
    total = shift.new_zeros(())
    squares = shift.new_zeros(())
    for chunk in chunks:
        deviation = chunk.to(dtype, copy=True).sub_(shift)
        total = total + deviation.sum()
        squares = squares + torch.dot(deviation, deviation)
    return finish(shift, total, squares, n)[:, None]


def _plain_moments(chunks: Sequence[Tensor], n: int) -> tuple[float, float]:
    """From sums that are not shifted, on a CPU.

    They lose what the mean is beside the deviation, squared, of their 16 digits: nothing where it
    is no larger, as it mostly is. To look is free on a CPU, where nobody waits for a device.
    """
    total = squares = 0.0
    # A copy in any case: sums depend on where in memory numbers begin.
    scratch = chunks[0].to(torch.float64, copy=True)
    for number, chunk in enumerate(chunks):
        wide = scratch if number == 0 else scratch[: chunk.numel()].copy_(chunk)
        total += float(wide.sum())
        squares += float(torch.dot(wide, wide))
    return total / n, squares - total * (total / n)


def _moments_of_slices(gradient: Tensor, unit_dims: tuple[int, ...]) -> Tensor:
    dtype = statistics_dtype(gradient.device)
    rest = [d for d in range(gradient.dim()) if d not in unit_dims]
    # A list: torch.compile cannot trace a generator here.
    units = math.prod([gradient.shape[d] for d in unit_dims])
    slices = gradient.permute(*unit_dims, *rest).reshape(units, -1)
    shift = slices[:, 0].to(dtype)
    deviation = slices.to(dtype, copy=True).sub_(shift[:, None])
    return finish(shift, deviation.sum(1), deviation.square().sum(1), slices.shape[1])


def finish(shift: Tensor, total: Tensor, squares: Tensor, n: int | Tensor) -> Tensor:
    """Mean and sum of squared deviations, in one, of sums of ``n`` values that were shifted."""
    # clamp passes NaN on, and keeps a rounding error from making a negative sum of squares.
    m2 = (squares - total.square() / n).clamp(min=0)
    return torch.stack([shift + total / n, m2])


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


def apply_(
    gradient: Tensor,
    centers: tuple[Tensor, ...],
    scale: Tensor,
    offset: Tensor | None = None,
) -> None:
    """``g = (g - center) * scale`` in place, in float32 or wider, rounded once.

    Parameters
    ----------
    gradient : Tensor
        Written.
    centers, scale : Tensor
        Of :func:`split`, broadcast against ``gradient``.
    offset : Tensor without dims, optional
        ``-center * scale``, where adding it after the scaling loses nothing: a center within a
        standard deviation of 0, a finite scale. That is one operation in place of three.
    """
    wide = gradient if gradient.dtype == scale.dtype else gradient.to(scale.dtype)
    if offset is None:
        for center in centers:
            wide.sub_(center)
        wide.mul_(scale)
    else:
        torch.add(offset, wide, alpha=float(scale), out=wide)
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
    found_inf: Tensor | None,
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
    found_inf : Tensor of one element, optional
        Where it is not 0 nothing changes; it is not waited for.
    """
    go = 1.0 if found_inf is None else (found_inf == 0).to(step)
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
    # 1 - 0.999 has four digits in float32. On a CPU there is no device to wait for.
    on_host = step.device.type == "cpu"
    t = float(step) if on_host else step.to(statistics_dtype(step.device))
    second = v if max_exp_avg_sq is None else torch.maximum(_wide(max_exp_avg_sq), v)
    denominator = second.sqrt().div_((1 - beta2**t) ** 0.5).add_(eps)
    p.sub_(m.div(denominator).mul_(lr / (1 - beta1**t)))
    _finish_step(((parameter, p), (exp_avg, m), (exp_avg_sq, v)), found_inf)
    if max_exp_avg_sq is not None:
        _finish_step(((max_exp_avg_sq, second),), found_inf)


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
    found_inf: Tensor | None,
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
    found_inf : Tensor of one element, optional
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
    _finish_step(written, found_inf)


def _finish_step(written: Iterable[tuple[Tensor, Tensor]], found_inf: Tensor | None) -> None:
    for target, result in written:
        if found_inf is not None:
            result = torch.where(found_inf.to(result.device) == 0, result, target.to(result.dtype))
        store_(target, result)
