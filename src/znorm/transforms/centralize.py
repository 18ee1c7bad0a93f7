"""Gradient centralization."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import torch

from znorm.moments import Affine, Moments
from znorm.selection import Select, freeze
from znorm.transforms.arguments import set_fields
from znorm.transforms.base import Transform

__all__ = ["Centralize"]


@dataclass(frozen=True)
class Centralize(Transform):
    """Subtract the mean of each output channel: ``g - mean(g over all dims but the output one)``.

    The output dim is dim 0, but for transposed convolutions, whose weight is
    ``(in, out / groups, ...)``; pass ``model=`` so that they are known. The rule in the text of the
    ZNorm paper, one mean for the whole tensor, is ``ZNorm(scale=False)``.

    Parameters
    ----------
    select : "weights", "all" or rules, default "weights"
        Which parameters; see :mod:`znorm.selection`. A tensor of one element is never touched.

    Raises
    ------
    TypeError, ValueError
        For an argument of a wrong type or value.

    Notes
    -----
    A constant channel becomes exactly 0. A tensor that holds NaN or inf becomes NaN as a whole.

    References
    ----------
    Yong, Huang, Hua and Zhang, "Gradient Centralization: A New Optimization Technique for Deep
    Neural Networks", ECCV 2020.

    Examples
    --------
    >>> import torch, znorm
    >>> g = torch.tensor([[1.0, 3.0], [10.0, 20.0]])
    >>> layout = znorm.Layout([("w", g)], znorm.Centralize())
    >>> znorm.apply_([g], znorm.decide(znorm.Centralize(), znorm.measure([g], layout)))
    >>> g
    tensor([[-1.,  1.],
            [-5.,  5.]])
    """

    select: Select = "weights"

    granularity = "channel"
    skips_single_elements = True

    def __post_init__(self) -> None:
        set_fields(self, select=freeze("Centralize", self.select))

    def decide(self, moments: Moments, parameters: Moments | None = None) -> Affine:
        # A mean that others have changed is rounded: scale 0 keeps constant channels exact.
        return Affine(moments.mean, torch.where(moments.m2 == 0, 0.0, torch.ones_like(moments.m2)))

    def resets(self) -> Mapping[str, Hashable]:
        return {"center": 0}
