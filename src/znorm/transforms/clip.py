"""Gradient clipping: by value, by each tensor's norm, by the norm of all tensors together."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from znorm.moments import Affine, Moments
from znorm.selection import Select, freeze
from znorm.transforms.arguments import check_number, set_fields
from znorm.transforms.base import Clamp, Transform

__all__ = ["ClipGlobalNorm", "ClipNorm", "ClipValue"]


@dataclass(frozen=True)
class ClipValue(Transform):
    """Clamp each entry to ``[-threshold, threshold]``.

    The only elementwise transform: a chain measures again after it.

    Parameters
    ----------
    threshold : float
        Greater than 0.
    select : "all", "weights" or rules, default "all"
        Which parameters; see :mod:`znorm.selection`.

    Raises
    ------
    TypeError, ValueError
        For an argument of a wrong type or value.

    See Also
    --------
    torch.nn.utils.clip_grad_value_

    Examples
    --------
    >>> import torch, znorm
    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> optimizer = znorm.optim.Adam([w], transform=znorm.ClipValue(0.1))
    >>> w.grad = torch.tensor([3.0, -0.05])
    >>> optimizer.step()
    >>> w.grad
    tensor([ 0.1000, -0.0500])
    """

    threshold: float
    select: Select = "all"

    elementwise = True
    is_clip = True

    def __post_init__(self) -> None:
        set_fields(
            self,
            threshold=check_number("ClipValue", "threshold", self.threshold, above=0),
            select=freeze("ClipValue", self.select),
        )

    def apply_(self, gradient: Tensor) -> None:
        # A bound that the dtype cannot hold is no bound; torch refuses to convert it.
        bound = min(float(self.threshold), torch.finfo(gradient.dtype).max)
        gradient.clamp_(-bound, bound)

    def fused_form(self) -> Clamp:
        return Clamp(self.threshold)

    def limit(self) -> tuple[Hashable, float]:
        return (ClipValue, self.select), self.threshold


@dataclass(frozen=True)
class ClipNorm(Transform):
    """Scale each gradient down to a norm of at most ``threshold``: ``g * min(1, c / ||g||)``.

    Parameters
    ----------
    threshold : float
        Greater than 0.
    select : "all", "weights" or rules, default "all"
        Which parameters; see :mod:`znorm.selection`.

    Raises
    ------
    TypeError, ValueError
        For an argument of a wrong type or value.

    Examples
    --------
    >>> import torch, znorm
    >>> g = torch.tensor([3.0, 4.0])
    >>> layout = znorm.Layout([("w", g)], znorm.ClipNorm(1.0))
    >>> znorm.apply_([g], znorm.decide(znorm.ClipNorm(1.0), znorm.measure([g], layout)))
    >>> g
    tensor([0.6000, 0.8000])
    """

    threshold: float
    select: Select = "all"

    is_clip = True

    def __post_init__(self) -> None:
        name = type(self).__name__
        set_fields(
            self,
            threshold=check_number(name, "threshold", self.threshold, above=0),
            select=freeze(name, self.select),
        )

    def decide(self, moments: Moments, parameters: Moments | None = None) -> Affine:
        norm = moments.norm()
        # A norm of 0 needs no clip: 1 stands in for threshold / 0.
        scale = self.threshold / norm.masked_fill(norm == 0, self.threshold)
        return Affine(torch.zeros_like(norm), scale.clamp(max=1.0))

    def limit(self) -> tuple[Hashable, float]:
        return (type(self), self.select), self.threshold


@dataclass(frozen=True)
class ClipGlobalNorm(ClipNorm):
    """Scale all gradients by ``min(1, c / norm)``, the norm being that of all of them together.

    It needs every gradient at once. torch's ``clip_grad_norm_`` scales by
    ``c / (norm + 1e-6)`` instead, which differs by 5e-6 where the norm is 0.2.

    Parameters
    ----------
    threshold : float
        Greater than 0.
    select : "all", "weights" or rules, default "all"
        Which parameters; see :mod:`znorm.selection`.

    Raises
    ------
    TypeError, ValueError
        For an argument of a wrong type or value.

    References
    ----------
    Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks",
    ICML 2013.

    Examples
    --------
    >>> import torch, znorm
    >>> gradients = [torch.tensor([3.0]), torch.tensor([4.0])]
    >>> transform = znorm.ClipGlobalNorm(1.0)
    >>> layout = znorm.Layout(gradients, transform)
    >>> znorm.apply_(gradients, znorm.decide(transform, znorm.measure(gradients, layout)))
    >>> gradients
    [tensor([0.6000]), tensor([0.8000])]
    """

    granularity = "global"
