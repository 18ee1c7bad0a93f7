"""Z-score normalization of gradients, and its half that keeps the mean."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import torch

from znorm.moments import Affine, Moments
from znorm.selection import Select, freeze
from znorm.transforms.arguments import check_choice, check_flag, check_number, set_fields
from znorm.transforms.base import Transform, ZScore

__all__ = ["UnitNorm", "ZNorm"]

# Beyond this an epsilon may count beside a deviation, and what came before is not undone.
_NEGLIGIBLE = 1e-6


@dataclass(frozen=True)
class ZNorm(Transform):
    """Replace each layer's gradient by its z-score: ``(g - mean) / (std + eps)``.

    Parameters
    ----------
    eps : float, default 1e-10
        Added to the standard deviation.
    center, scale : bool, default True
        Whether to subtract the mean, and to divide by the standard deviation.
    correction : 0 or 1, default 0
        0 divides the sum of squares by n, as the paper's Lemma 4.1 needs; 1 by n - 1.
    granularity : "tensor" or "channel", default "tensor"
        One mean and one deviation for each tensor, or for each of its output channels.
    select : "weights", "all" or rules, default "weights"
        Which parameters; see :mod:`znorm.selection`. A tensor of one element is never touched:
        its z-score is 0 whatever its gradient, so that it would never be trained.

    Raises
    ------
    TypeError, ValueError
        For an argument of a wrong type or value.

    Notes
    -----
    A constant unit becomes exactly 0. A tensor that holds NaN or inf becomes NaN as a whole.

    References
    ----------
    Yun and Kim, "ZNorm: Z-Score Gradient Normalization for Deep Neural Networks",
    arXiv 2408.01215, Eq. 1.

    Examples
    --------
    >>> import torch, znorm
    >>> g = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    >>> layout = znorm.Layout([("w", g)], znorm.ZNorm())
    >>> znorm.apply_([g], znorm.decide(znorm.ZNorm(), znorm.measure([g], layout)))
    >>> g
    tensor([[-1.0690, -0.5345],
            [ 0.0000,  1.6036]])
    """

    eps: float = 1e-10
    center: bool = True
    scale: bool = True
    correction: int = 0
    granularity: str = "tensor"
    select: Select = "weights"

    skips_single_elements = True

    def __post_init__(self) -> None:
        set_fields(
            self,
            eps=check_number("ZNorm", "eps", self.eps),
            select=freeze("ZNorm", self.select),
        )
        check_flag("ZNorm", "center", self.center)
        check_flag("ZNorm", "scale", self.scale)
        check_choice("ZNorm", "correction", self.correction, (0, 1))
        check_choice("ZNorm", "granularity", self.granularity, ("tensor", "channel"))

    def decide(self, moments: Moments, parameters: Moments | None = None) -> Affine:
        center = moments.mean if self.center else torch.zeros_like(moments.mean)
        constant = moments.m2 == 0
        std = moments.std(self.correction)
        # Of a constant unit 1 stands in, so that no 1 / 0 gets into what is differentiated.
        scale = 1 / (std.masked_fill(constant, 1.0) + self.eps)
        if not self.scale:
            scale = torch.ones_like(std)
        if self.center or self.scale:
            scale = torch.where(constant, 0.0, scale)
        return Affine(center, scale)

    def fused_form(self) -> ZScore | None:
        if self.granularity != "tensor":
            return None
        return ZScore(self.eps, self.center, self.scale, self.correction)

    def resets(self) -> Mapping[str, Hashable]:
        center: dict[str, Hashable] = {"center": 0} if self.center else {}
        if not self.scale or self.eps > _NEGLIGIBLE:
            return center
        return {**center, "scale": ("std", self.correction)}


@dataclass(frozen=True)
class UnitNorm(Transform):
    """Divide each gradient by its Euclidean norm: ``g / (||g|| + eps)``.

    Parameters
    ----------
    eps : float, default 1e-10
        Added to the norm.
    select : "weights", "all" or rules, default "weights"
        Which parameters; see :mod:`znorm.selection`. A tensor of one element is never touched.

    Raises
    ------
    TypeError, ValueError
        For an argument of a wrong type or value.

    Examples
    --------
    >>> import torch, znorm
    >>> g = torch.tensor([[3.0], [4.0]])
    >>> layout = znorm.Layout([("w", g)], znorm.UnitNorm())
    >>> znorm.apply_([g], znorm.decide(znorm.UnitNorm(), znorm.measure([g], layout)))
    >>> g.flatten()
    tensor([0.6000, 0.8000])
    """

    eps: float = 1e-10
    select: Select = "weights"

    skips_single_elements = True

    def __post_init__(self) -> None:
        set_fields(
            self,
            eps=check_number("UnitNorm", "eps", self.eps),
            select=freeze("UnitNorm", self.select),
        )

    def decide(self, moments: Moments, parameters: Moments | None = None) -> Affine:
        norm = moments.norm()
        zero = norm == 0
        scale = torch.where(zero, 0.0, 1 / (norm.masked_fill(zero, 1.0) + self.eps))
        return Affine(torch.zeros_like(norm), scale)

    def resets(self) -> Mapping[str, Hashable]:
        return {} if self.eps > _NEGLIGIBLE else {"scale": "norm"}
