"""Clipping of each output channel relative to its weights."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch

from znorm.moments import Affine, Moments
from znorm.selection import Select, freeze
from znorm.transforms.arguments import check_number, set_fields
from znorm.transforms.base import Transform

__all__ = ["AdaptiveClip"]


@dataclass(frozen=True)
class AdaptiveClip(Transform):
    """Scale each output channel's gradient down to ``threshold`` times the norm of its weights.

    ``g * min(1, threshold * max(||w||, eps) / ||g||)`` for each output channel, a vector being one.
    The weights are read once a step, as the gradients are. Its authors leave the last linear layer
    out: ``select=[("head.*", False)]``.

    Parameters
    ----------
    threshold : float
        Greater than 0; 0.01 in the paper for large batches.
    eps : float, default 1e-3
        What the norm of weights counts for at least, so that those that start at 0 can move.
    select : "all", "weights" or rules, default "all"
        Which parameters; see :mod:`znorm.selection`.

    Raises
    ------
    TypeError, ValueError
        For an argument of a wrong type or value.

    References
    ----------
    Brock, De, Smith and Simonyan, "High-Performance Large-Scale Image Recognition Without
    Normalization", ICML 2021, Eq. 3.

    Examples
    --------
    >>> import torch, znorm
    >>> w = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    >>> g = torch.tensor([[0.3, 0.4], [0.0, 5.0]])
    >>> transform = znorm.AdaptiveClip(0.1)
    >>> layout = znorm.Layout([("w", w)], transform)
    >>> moments, weights = znorm.measure([g], layout), znorm.measure([w], layout)
    >>> znorm.apply_([g], znorm.decide(transform, moments, weights))
    >>> g
    tensor([[0.3000, 0.4000],
            [0.0000, 0.1000]])
    """

    threshold: float
    eps: float = 1e-3
    select: Select = "all"

    granularity = "channel"
    uses_parameters = True
    is_clip = True

    def __post_init__(self) -> None:
        set_fields(
            self,
            threshold=check_number("AdaptiveClip", "threshold", self.threshold, above=0),
            eps=check_number("AdaptiveClip", "eps", self.eps),
            select=freeze("AdaptiveClip", self.select),
        )

    def decide(self, moments: Moments, parameters: Moments | None = None) -> Affine:
        if parameters is None:
            raise ValueError("AdaptiveClip: needs the moments of the parameters, too")
        norm = moments.norm()
        most = self.threshold * parameters.norm().clamp(min=self.eps)
        # A norm of 0 needs no clip: 1 stands in for something / 0.
        zero = norm == 0
        scale = (most / norm.masked_fill(zero, 1.0)).masked_fill(zero, 1.0)
        return Affine(torch.zeros_like(norm), scale.clamp(max=1.0))

    def limit(self) -> tuple[Hashable, float]:
        return (AdaptiveClip, self.eps, self.select), self.threshold
