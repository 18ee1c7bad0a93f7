"""Moments of gradients, affine maps of them, and the algebra that joins the two.

Everything here is a plain tensor of one entry a unit; nothing reads a gradient.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

__all__ = ["Affine", "Moments"]


@dataclass
class Affine:
    """The map ``g_hat = (g - center) * scale``, one center and one scale a unit.

    Parameters
    ----------
    center, scale : Tensor of shape (units,)
        In the units of the gradient and in their inverse; float64 where the device has it.
    layout : Layout, optional
        Says which slice of which gradient each entry belongs to; :func:`znorm.apply_` needs it.

    Examples
    --------
    >>> import torch, znorm
    >>> first = znorm.Affine(center=torch.tensor([2.0]), scale=torch.tensor([0.5]))
    >>> both = first.then(znorm.Affine(center=torch.tensor([1.0]), scale=torch.tensor([3.0])))
    >>> both.center, both.scale
    (tensor([4.]), tensor([1.5000]))
    """

    center: Tensor
    scale: Tensor
    layout: Any = None

    def then(self, other: Affine) -> Affine:
        """The single map that does this one first and ``other`` second.

        ``((g - c1) s1 - c2) s2 = (g - (c1 + c2 / s1)) s1 s2``. Where ``s1`` is 0 the result is a
        constant that no center can express; every transform here leaves such a unit at 0.

        Parameters
        ----------
        other : Affine
            Of as many units.
        """
        shift = torch.where(self.scale == 0, 0.0, other.center / self.scale)
        return replace(self, center=self.center + shift, scale=self.scale * other.scale)


@dataclass
class Moments:
    """Count, mean and sum of squared deviations of each unit of a list of gradients.

    A unit is a slice of a gradient that shares one center and one scale: a whole tensor, or an
    output channel. The three tensors may be written, for example by a reduction across processes.

    Parameters
    ----------
    count, mean, m2 : Tensor of shape (units,)
        Elements, their mean, and the sum of their squared deviations from it; float64 where the
        device has it, in the order of the layout.
    layout : Layout, optional
        What the entries stand for.

    Examples
    --------
    >>> import torch, znorm
    >>> whole = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    >>> layout = znorm.Layout([("w", whole)], znorm.ZNorm())
    >>> moments = znorm.measure([whole], layout)
    >>> float(moments.count), float(moments.mean), float(moments.m2)
    (4.0, 3.0, 14.0)
    """

    count: Tensor
    mean: Tensor
    m2: Tensor
    layout: Any = None

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets of elements together, exactly (Chan, Golub and LeVeque 1979).

        Parameters
        ----------
        other : Moments
            Of the same units, over other elements of them.

        Raises
        ------
        ValueError
            If the two do not have the same number of units.
        """
        if not isinstance(other, Moments):
            raise TypeError(f"moments: expected others to merge, found {type(other).__name__}")
        if self.count.shape != other.count.shape:
            raise ValueError(
                f"moments: cannot merge {self.count.numel()} units with {other.count.numel()}; "
                "measure both with the same layout"
            )
        count = self.count + other.count
        share = other.count / count.clamp(min=1)
        delta = other.mean - self.mean
        # An empty side has no mean of its own: what stands there must not reach the other's.
        delta = torch.where((self.count == 0) | (other.count == 0), 0.0, delta)
        mean = torch.where(self.count == 0, other.mean, self.mean + delta * share)
        m2 = self.m2 + other.m2 + delta.square() * self.count * share
        return replace(self, count=count, mean=mean, m2=m2)

    def after(self, affine: Affine) -> Moments:
        """Moments that the gradients would have after ``affine``, without touching them.

        Parameters
        ----------
        affine : Affine
            Of as many units.
        """
        mean = (self.mean - affine.center) * affine.scale
        return replace(self, mean=mean, m2=self.m2 * affine.scale.square())

    def std(self, correction: int = 0) -> Tensor:
        """Standard deviation of each unit, over ``count - correction``.

        Parameters
        ----------
        correction : int, default 0
            0 for that of a population, 1 for that of a sample.
        """
        return _root(self.m2 / (self.count - correction).clamp(min=1))

    def norm(self) -> Tensor:
        """Euclidean norm of each unit: ``sqrt(m2 + count * mean^2)``."""
        return _root(self.m2 + self.count * self.mean.square())

    def take(self, index: Tensor) -> Moments:
        """The units at ``index``.

        Parameters
        ----------
        index : Tensor of int64
        """
        return Moments(self.count[index], self.mean[index], self.m2[index])

    def pool(self, segment: Tensor, segments: int) -> Moments:
        """Merge units that share a number in ``segment`` into one, exactly.

        Parameters
        ----------
        segment : Tensor of shape (units,), int64
            For each unit the pooled unit that it belongs to; ascending, none left out.
        segments : int
            How many pooled units there are.
        """

        def total(values: Tensor) -> Tensor:
            return sum_by(values, segment, segments)

        count = total(self.count)
        # Shifted by one unit's mean, so that equal means pool to exactly that mean.
        numbers = torch.arange(segments, device=segment.device)
        first = self.mean[torch.searchsorted(segment, numbers)]
        shifted = self.mean - first[segment]
        mean = first + total(self.count * shifted) / count.clamp(min=1)
        deviation = self.mean - mean[segment]
        m2 = total(self.m2 + self.count * deviation.square())
        return Moments(count, mean, m2)


def sum_by(values: Tensor, segment: Tensor, segments: int) -> Tensor:
    """Sums of the values that share a number in ``segment``: the same bits on every run."""
    if segments == 1:
        return values.sum().reshape(1)
    total = values.new_zeros(segments)
    if values.device.type == "cuda":  # where index_add_ adds in any order
        return total.index_put_((segment,), values, accumulate=True)
    return total.index_add_(0, segment, values)


def _root(squares: Tensor) -> Tensor:
    """The square root; of 0 with a derivative of 0, not of inf, which would become NaN."""
    zero = squares == 0
    return squares.masked_fill(zero, 1.0).sqrt().masked_fill(zero, 0.0)
