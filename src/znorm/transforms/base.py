"""The contract of a gradient transform: one class that says all that the library asks about it."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Self, TypeAlias, get_args

from torch import Tensor

from znorm.moments import Affine, Moments
from znorm.selection import Select

__all__ = [
    "Clamp",
    "FusedForm",
    "Granularity",
    "Transform",
    "ZScore",
    "check_granularity",
    "form_of",
]

Granularity: TypeAlias = Literal["tensor", "channel", "global"]


@dataclass(frozen=True)
class ZScore:
    """A z-score as compiled kernels decide it by themselves, tensor by tensor.

    Parameters
    ----------
    eps : float
        Added to the standard deviation.
    center, scale : bool
        Whether the mean is subtracted, and whether is divided by the deviation.
    correction : int
        Taken from the number of elements that the sum of squares is divided by.
    """

    eps: float = 0.0
    center: bool = True
    scale: bool = True
    correction: int = 0

    @cached_property
    def numbers(self) -> tuple[float, float, float, float]:
        """The four as kernels read them."""
        return float(self.eps), float(self.center), float(self.scale), float(self.correction)


@dataclass(frozen=True)
class Clamp:
    """A clamp of each entry to ``[-bound, bound]``, as compiled kernels do it."""

    bound: float


FusedForm: TypeAlias = ZScore | Clamp


class Transform:
    """A gradient transform: moments of the gradients in, one center and one scale a unit out.

    A transform of your own is a class of this base, best a frozen dataclass, with a ``decide``. It
    then works in :func:`znorm.attach`, in every optimizer, in a chain and in receipts. What the
    attributes say by default suits a transform that works on each tensor by itself.

    Attributes
    ----------
    select : "all", "weights" or rules, default "all"
        Which parameters; see :mod:`znorm.selection`. A class's own default is also what its rules
        leave open.
    granularity : "tensor", "channel" or "global", default "tensor"
        The elements that share one center and one scale: those of a layer, those of one of its
        output channels, or all elements of all layers. Global ones need every gradient at once, so
        that they cannot act in backward.
    uses_parameters : bool, default False
        Whether ``decide`` is also given the moments of the parameters.
    elementwise : bool, default False
        Whether it has an ``apply_`` in place of a ``decide``, since each entry goes by itself. What
        follows it in a chain measures the gradients again.
    is_clip : bool, default False
        Whether it only ever makes gradients smaller: receipts then count where it did.
    skips_single_elements : bool, default False
        Whether tensors whose units have one element are left alone.
    writes : bool, default True
        Whether it can change a gradient.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> import torch, znorm
    >>> @dataclass(frozen=True)
    ... class ClipDeviation(znorm.transforms.Transform):
    ...     threshold: float
    ...     is_clip = True
    ...
    ...     def decide(self, moments, parameters=None):
    ...         scale = (self.threshold / moments.std()).clamp(max=1.0)
    ...         return znorm.Affine(torch.zeros_like(scale), scale)
    >>> w = torch.nn.Parameter(torch.zeros(2, 2))
    >>> optimizer = znorm.optim.SGD([("w", w)], lr=1.0, transform=ClipDeviation(1.0))
    >>> w.grad = torch.tensor([[4.0, -4.0], [4.0, -4.0]])
    >>> optimizer.step()
    >>> w.detach()
    tensor([[-1.,  1.],
            [-1.,  1.]])
    >>> optimizer.attachment.receipt()["w"]["clipped"]
    1.0
    """

    select: Select = "all"
    granularity: str = "tensor"
    uses_parameters: bool = False
    elementwise: bool = False
    is_clip: bool = False
    skips_single_elements: bool = False
    writes: bool = True

    def decide(self, moments: Moments, parameters: Moments | None = None) -> Affine:
        """The map for these units: a pure function of their moments.

        Parameters
        ----------
        moments : Moments
            Of the gradients, a unit an entry; NaN where a tensor is not finite.
        parameters : Moments, optional
            Of the parameters, in the same units, if the transform ``uses_parameters``.

        Returns
        -------
        Affine
            A center and a scale for each unit. Where the scale is 0 the gradient becomes 0.
        """
        raise NotImplementedError(f"{type(self).__name__} decides nothing; give it a decide()")

    def apply_(self, gradient: Tensor) -> None:
        """Change one gradient in place, entry by entry, if the transform is ``elementwise``."""
        raise NotImplementedError(f"{type(self).__name__} is not elementwise")

    def fused_form(self) -> FusedForm | None:
        """The form that compiled kernels do by themselves; None if they are told coefficients."""
        return None

    def resets(self) -> Mapping[str, Hashable]:
        """The properties that the transform sets anew whatever they were before, and their values.

        By "center" and "scale". A chain warns of a transform whose work another one undoes so.
        """
        return {}

    def limit(self) -> tuple[Hashable, float] | None:
        """The quantity that is bounded, and by how much: of two clips alike the tighter one counts.

        A chain warns of a looser clip beside a tighter one. None if nothing is bounded.
        """
        return None

    def with_select(self, select: Select) -> Self:
        """The same transform for other parameters."""
        other = copy.copy(self)
        object.__setattr__(other, "select", select)
        return other


def form_of(transform: Transform) -> FusedForm | None:
    """The transform's fused form, where it says the same as its formula.

    A class that changes the formula of another and inherits its form goes by its formula; so do
    global ones, since kernels z-score each unit by itself.
    """
    form = transform.fused_form()
    order = type(transform).__mro__
    formula = "apply_" if transform.elementwise else "decide"
    of_formula, of_form = (
        next(place for place, kind in enumerate(order) if name in vars(kind))
        for name in (formula, "fused_form")
    )
    if of_formula < of_form or (isinstance(form, ZScore) and transform.granularity == "global"):
        return None
    return form


def check_granularity(transform: Transform) -> None:
    """Raise ValueError, naming the class, for a granularity that there is not."""
    if transform.granularity not in get_args(Granularity):
        raise ValueError(
            f"{type(transform).__name__}: granularity must be one of "
            f"{', '.join(get_args(Granularity))}, found {transform.granularity!r}"
        )
