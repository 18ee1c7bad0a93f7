"""One parameter that holds several layers, and the slices of it that they are."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

__all__ = ["Cut", "LayerSlice", "Layers", "is_dense"]


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
    name       shape      units  kernel  transformed
    a.qkv      (12, 4)    3      cpu     yes: ZNorm; 3 layers along axis 0
    a.experts  (8, 5, 4)  8      cpu     yes: ZNorm; 8 layers along axis 0
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

    def cuts(self, name: str, shape: tuple[int, ...]) -> tuple[Cut, ...]:
        """The cuts of a tensor of that shape into its layers; none if it is one.

        Raises
        ------
        ValueError
            If the tensor cannot be split so; it is named.
        """
        if self.parts == 1:
            return ()
        if not -len(shape) <= self.dim < len(shape):
            raise ValueError(f"{name}: has no dim {self.dim} to split, its shape is {shape}")
        dim = self.dim % len(shape)
        length = shape[dim]
        if self.parts is None:
            return tuple(Cut(dim, start, 1, stacked=True) for start in range(length))
        sizes = self.parts if isinstance(self.parts, tuple) else ()
        if isinstance(self.parts, int):
            if length % self.parts:
                raise ValueError(
                    f"{name}: {length} along dim {self.dim} cannot be split in {self.parts} equal "
                    "layers; give Layers their sizes"
                )
            sizes = (length // self.parts,) * self.parts
        if sum(sizes) != length:
            raise ValueError(
                f"{name}: the sizes {sizes} of Layers sum to {sum(sizes)}, but the shape {shape} "
                f"has {length} along dim {self.dim}"
            )
        if len(sizes) == 1:
            return ()
        starts = (sum(sizes[:number]) for number in range(len(sizes)))
        return tuple(Cut(dim, start, size) for start, size in zip(starts, sizes, strict=True))


@dataclass(frozen=True)
class Cut:
    """A stretch of one dim of a parameter; ``stacked`` takes a single place and the dim out."""

    dim: int
    start: int
    length: int
    stacked: bool = False

    def shape(self, whole: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of what is cut out of a tensor of that shape."""
        middle = () if self.stacked else (self.length,)
        return whole[: self.dim] + middle + whole[self.dim + 1 :]


@dataclass(frozen=True)
class LayerSlice:
    """A slice of a parameter that is a layer of its own; most parameters have one, the whole.

    Parameters
    ----------
    cut : Cut, or None
        What it is of the parameter; None for all of it.
    view : tuple of int
        The shape in which units are counted: the layer's own, with dim 0 split where a transposed
        convolution has groups, and a last dim of 2 where numbers are complex.
    unit_dims : tuple of int
        The dims of ``view`` that number the units; none if the layer is one unit.
    first_unit : int
        The place of its first unit among all units of the layout.
    units, size : int
        How many units there are, and the elements of each.
    """

    cut: Cut | None
    view: tuple[int, ...]
    unit_dims: tuple[int, ...]
    first_unit: int
    units: int = field(init=False)
    size: int = field(init=False)

    def __post_init__(self) -> None:
        units = math.prod(self.view[d] for d in self.unit_dims)
        object.__setattr__(self, "units", units)
        object.__setattr__(self, "size", math.prod(self.view) // units)

    def stretch(
        self, shape: tuple[int, ...], stride: tuple[int, ...]
    ) -> tuple[int, int, int] | None:
        """Start, elements of a unit and units, if units lie one after the other in memory.

        Parameters
        ----------
        shape, stride : tuple of int
            Of a real tensor that has the parameter's shape.

        Returns
        -------
        tuple of three int, or None
            In elements; None if a unit is not one stretch of memory.
        """
        size = math.prod(shape)
        if not is_dense(shape, stride):
            return None
        if self.cut is None and not self.unit_dims:
            return 0, size, 1
        if len(self.view) > len(shape) or self.unit_dims not in ((), (0,)):
            return None
        # What is numbered by the first dim lies apart only if that dim is the slowest in memory.
        if not size or stride[0] * shape[0] != size:
            return None
        if self.cut is None:
            return 0, stride[0], shape[0]
        if self.cut.dim != 0:
            return None
        if self.cut.stacked and self.unit_dims and stride[1] * shape[1] != stride[0]:
            return None
        length = self.cut.length * stride[0]
        return self.cut.start * stride[0], length // self.units, self.units

    def view_of(self, tensor: Tensor) -> Tensor:
        """The layer's part of a real tensor that has the parameter's shape, shared with it."""
        if self.cut is not None:
            tensor = tensor.narrow(self.cut.dim, self.cut.start, self.cut.length)
            if self.cut.stacked:
                tensor = tensor.squeeze(self.cut.dim)
        return tensor if tensor.shape == self.view else tensor.view(self.view)

    def broadcast(self, values: Tensor) -> Tensor:
        """The layer's entries of values by unit, in the shape that meets its view."""
        if not self.unit_dims:
            return values[self.first_unit]
        shape = [size if d in self.unit_dims else 1 for d, size in enumerate(self.view)]
        return values[self.first_unit : self.first_unit + self.units].view(shape)


def is_dense(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """True if the elements fill a stretch of memory, in any order of the dims."""
    expected = 1
    for step, size in sorted(zip(stride, shape, strict=True)):
        if size != 1:
            if step != expected:
                return False
            expected *= size
    return True
