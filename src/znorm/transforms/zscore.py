"""Z-score normalization of gradients, and its half that keeps the mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from znorm.moments import Affine, Moments
from znorm.selection import Select, freeze
from znorm.transforms.arguments import check_choice, check_flag, check_number

__all__ = ["UnitNorm", "ZNorm"]


@dataclass(frozen=True)
class ZNorm:
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

    joint: ClassVar[bool] = False
    relative: ClassVar[bool] = False
    skips_single_elements: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "eps", check_number("ZNorm", "eps", self.eps))
        check_flag("ZNorm", "center", self.center)
        check_flag("ZNorm", "scale", self.scale)
        check_choice("ZNorm", "correction", self.correction, (0, 1))
        check_choice("ZNorm", "granularity", self.granularity, ("tensor", "channel"))
        object.__setattr__(self, "select", freeze("ZNorm", self.select))

    def decide(self, moments: Moments) -> Affine:
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


@dataclass(frozen=True)
class UnitNorm:
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

    granularity: ClassVar[str] = "tensor"
    joint: ClassVar[bool] = False
    relative: ClassVar[bool] = False
    skips_single_elements: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "eps", check_number("UnitNorm", "eps", self.eps))
        object.__setattr__(self, "select", freeze("UnitNorm", self.select))

    def decide(self, moments: Moments) -> Affine:
        norm = moments.norm()
        zero = norm == 0
        scale = torch.where(zero, 0.0, 1 / (norm.masked_fill(zero, 1.0) + self.eps))
        return Affine(torch.zeros_like(norm), scale)
