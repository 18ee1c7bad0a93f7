"""The way tensors lie in memory, as far as kernels take it for granted."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from znorm._torch_internals import is_plain
from znorm.layers import LayerSlice, is_dense

__all__ = ["fits", "has_stretches", "lies_as"]


def fits(tensor: Tensor, slices: Sequence[LayerSlice], *, weights: bool = False) -> bool:
    """True if compiled kernels can take a tensor, each unit of its slices a stretch of memory.

    ``weights`` are read alone, as constants: that they are differentiated by is no hindrance.
    """
    return (
        is_plain(tensor)
        and has_stretches(tensor, slices)
        and tensor.numel() > 0
        and (weights or not tensor.requires_grad)
        and not tensor.is_neg()
    )


def has_stretches(tensor: Tensor, slices: Sequence[LayerSlice]) -> bool:
    """True if a tensor fills its memory, and each unit of its slices is one stretch of it."""
    if tensor.layout != torch.strided:
        return False
    shape, stride = tuple(tensor.shape), tensor.stride()
    return is_dense(shape, stride) and all(piece.stretch(shape, stride) for piece in slices)


def lies_as(parameter: Tensor, other: Tensor) -> bool:
    """True if a tensor is as large as a parameter, of its kind and in its memory order.

    Update kernels take that for granted of gradients and states, torch's own fused ones too.
    """
    return (
        is_plain(parameter)
        and is_plain(other)  # of a subclass that dispatches the elements lie elsewhere
        and other.layout == torch.strided
        and not other.is_neg()  # a view of what is to be read with its sign changed
        and other.shape == parameter.shape
        and other.stride() == parameter.stride()
        and other.dtype == parameter.dtype
        and other.device == parameter.device
    )
