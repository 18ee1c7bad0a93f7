"""One parameter that holds several layers, and the slices of it that they are."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

__all__ = ["Layer", "Layers"]


@dataclass(frozen=True)
class Layers:
    """Says in a rule of ``select`` that a parameter holds several layers, each with units its own.

    Parameters
    ----------
    parts : int, tuple of int or None, default None
        So many layers of equal size side by side along ``dim``, such as 3 for a fused query, key
        and value weight; or their sizes, such as ``(4096, 1024, 1024)`` where keys and values are
        fewer; or None where each slice along ``dim`` is a layer, as experts are stacked.
    dim : int, default 0

    Raises
    ------
    TypeError, ValueError
        For an argument of a wrong type or value.

    Examples
    --------
    >>> import torch, znorm
    >>> fused, experts = torch.randn(12, 4), torch.randn(8, 5, 4)
    >>> rules = [("*.qkv", znorm.Layers(3)), ("*.experts", znorm.Layers())]
    >>> named = [("a.qkv", fused), ("a.experts", experts)]
    >>> print(znorm.Layout(named, znorm.ZNorm(select=rules)).describe())
    name       shape      units  kernel     transformed
    a.qkv      (12, 4)    3      reference  yes: ZNorm in 3 layers along axis 0
    a.experts  (8, 5, 4)  8      reference  yes: ZNorm in 8 layers along axis 0
    """

    parts: int | tuple[int, ...] | None = None
    dim: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.parts, list):
            object.__setattr__(self, "parts", tuple(self.parts))
        sizes = self.parts if isinstance(self.parts, tuple) else (self.parts,)
        for size in (1,) if self.parts is None else sizes:
            if isinstance(size, bool) or not isinstance(size, int):
                raise TypeError(
                    "Layers: parts must be a number of layers, a tuple of their sizes or None, "
                    f"found {type(size).__name__} {size!r}"
                )
            if size < 1:
                raise ValueError(f"Layers: parts must be 1 or more, found {size}")
        if self.parts == ():
            raise ValueError("Layers: parts must hold a size, found ()")
        if isinstance(self.dim, bool) or not isinstance(self.dim, int):
            raise TypeError(
                f"Layers: dim must be a number, found {type(self.dim).__name__} {self.dim!r}"
            )

    def sizes(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """The layers' sizes along ``dim`` of a tensor; None where they are stacked.

        Raises
        ------
        ValueError
            If the tensor cannot be split so; it is named.
        """
        if not -len(shape) <= self.dim < len(shape):
            raise ValueError(f"{name}: has no dim {self.dim} to split, its shape is {shape}")
        length = shape[self.dim]
        if self.parts is None:
            return None
        if isinstance(self.parts, int):
            if length % self.parts:
                raise ValueError(
                    f"{name}: {length} along dim {self.dim} cannot be split in {self.parts} equal "
                    "layers; give Layers their sizes"
                )
            return (length // self.parts,) * self.parts
        if sum(self.parts) != length:
            raise ValueError(
                f"{name}: the sizes {self.parts} of Layers sum to {sum(self.parts)}, but the "
                f"shape {shape} has {length} along dim {self.dim}"
            )
        return self.parts


@dataclass(frozen=True)
class Layer:
    """A slice of a parameter that is a layer of its own; most parameters have one, the whole.

    Parameters
    ----------
    slice : (dim, start, length), or None
        Of the parameter; None for all of it. Length 0 takes the dim out, as stacked layers need.
    view : tuple of int
        The shape in which units are counted: the slice's own, with dim 0 split where a transposed
        convolution has groups, and a last dim of 2 where numbers are complex.
    unit_dims : tuple of int
        The dims of ``view`` that number the units; none if the layer is one unit.
    first : int
        The place of its first unit among all units of the layout.
    units, size : int
        How many units there are, and the elements of each.
    """

    slice: tuple[int, int, int] | None
    view: tuple[int, ...]
    unit_dims: tuple[int, ...]
    first: int
    units: int = field(init=False)
    size: int = field(init=False)

    def __post_init__(self) -> None:
        units = math.prod(self.view[d] for d in self.unit_dims)
        object.__setattr__(self, "units", units)
        object.__setattr__(self, "size", math.prod(self.view) // units)

    def of(self, tensor: Tensor) -> Tensor:
        """The layer's part of a real tensor that has the parameter's shape, shared with it."""
        if self.slice is not None:
            dim, start, length = self.slice
            tensor = tensor.narrow(dim, start, length) if length else tensor.select(dim, start)
        return tensor if tensor.shape == self.view else tensor.view(self.view)

    def spread(self, values: Tensor) -> Tensor:
        """The layer's entries of values by unit, in the shape that meets its view."""
        if not self.unit_dims:
            return values[self.first]
        shape = [size if d in self.unit_dims else 1 for d, size in enumerate(self.view)]
        return values[self.first : self.first + self.units].view(shape)
