"""The parameters of a layout: what acts on each and why, and the layers that it holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from znorm.kernels.registry import name_of
from znorm.layers import Cut, Layers, LayerSlice
from znorm.parameter_info import ParameterInfo
from znorm.selection import Selector, freeze
from znorm.sharding import Sharding, shard_of
from znorm.transforms.base import Transform, check_granularity

__all__ = ["Description", "ParameterEntry", "entries_of"]


@dataclass(frozen=True)
class ParameterEntry:
    """One parameter of a layout.

    Parameters
    ----------
    name : str
        As shown in messages.
    shape : tuple of int
    acts : tuple of bool
        For each transform of a chain whether it acts on this tensor.
    why : str
        Why it is transformed in this way, or why not.
    layers : Layers
        The layers that it holds.
    slices : tuple of LayerSlice
        What of it is measured; none if nothing is.
    units : int
        Of all of its slices.
    kernel : str
        The name of the kernels that serve it.
    observed : bool
        Whether it is measured alone, and not written.
    sharding : Sharding, optional
        Where processes hold a part of it each; ``shape`` and ``slices`` are those of the whole.
    """

    name: str
    shape: tuple[int, ...]
    acts: tuple[bool, ...]
    why: str
    layers: Layers
    slices: tuple[LayerSlice, ...]
    units: int
    kernel: str
    observed: bool
    sharding: Sharding | None = None

    @property
    def selected(self) -> bool:
        """True if any transform acts on it."""
        return any(self.acts)

    @property
    def unit_range(self) -> range:
        """Its units among all of the layout."""
        first = self.slices[0].first_unit if self.slices else 0
        return range(first, first + self.units)

    def here(self, first_unit: int) -> tuple[tuple[int, ...], tuple[LayerSlice, ...]]:
        """Shape and slices of what this process holds, numbered from ``first_unit``."""
        if self.sharding is None or not self.selected:
            pieces = tuple(
                replace(piece, first_unit=piece.first_unit - self.unit_range.start + first_unit)
                for piece in self.slices
            )
            return self.shape, pieces
        at = self.sharding.here()
        slices, _ = self.sharding.slices_at(at, self.slices, first_unit)
        return self.sharding.shape_at(at), slices

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "shape": self.shape,
            "units": self.units,
            "kernel": self.kernel,
            "transformed": self.selected and not self.observed,
            "why": self.why,
        }


@dataclass(frozen=True)
class Description:
    """A table of parameters: ``str()`` prints it, ``rows`` are its dicts."""

    rows: tuple[dict[str, Any], ...]

    def __str__(self) -> str:
        table = [["name", "shape", "units", "kernel", "transformed"]]
        for row in self.rows:
            done = ("yes: " if row["transformed"] else "no: ") + row["why"]
            table.append([row["name"], str(row["shape"]), str(row["units"]), row["kernel"], done])
        widths = [max(len(line[column]) for line in table) for column in range(5)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in table
        )


def entries_of(
    named: Sequence[tuple[str | None, Tensor]],
    infos: Sequence[ParameterInfo],
    transforms: Sequence[Transform],
    *,
    every_rule_matches: bool = True,
) -> tuple[ParameterEntry, ...]:
    """An entry for each parameter, for a chain of these transforms.

    ``every_rule_matches`` is False where parameters are one process's share of all: a rule may then
    match another one's.

    Raises
    ------
    TypeError, ValueError
        For a parameter that a transform acts on and that cannot be transformed or split; for a
        rule that matches nothing.
    """
    selectors = [_selector(transform) for transform in transforms]
    entries: list[ParameterEntry] = []
    first_unit = 0
    for position, ((label, tensor), info) in enumerate(zip(named, infos, strict=True)):
        if isinstance(tensor, nn.UninitializedParameter):
            raise ValueError(
                f"{label or position}: not initialized yet; run one forward pass first"
            )
        name = label or info.name or f"parameter {position} {tuple(tensor.shape)}"
        entry = _entry(name, tensor, info, transforms, selectors, first_unit)
        entries.append(entry)
        first_unit += entry.units
    if named and every_rule_matches:
        for selector in selectors:
            selector.check_all_matched()
    return tuple(entries)


def _selector(transform: Transform) -> Selector:
    kind = type(transform)
    check_granularity(transform)
    default = kind.select if isinstance(kind.select, str) else "all"
    select = freeze(kind.__name__, transform.select)
    return Selector(kind.__name__, select, default, transform.skips_single_elements)


def _entry(
    name: str,
    tensor: Tensor,
    info: ParameterInfo,
    transforms: Sequence[Transform],
    selectors: Sequence[Selector],
    first_unit: int,
) -> ParameterEntry:
    shape = tuple(tensor.shape)
    verdicts = [selector.judge(tensor, info, name) for selector in selectors]
    if not all(verdict.left_out_by_rule for verdict in verdicts):
        _check_not_flat(name, tensor)
    layers = _layers_of(name, [verdict.layers for verdict in verdicts], info, shape)
    reasons = [
        verdict.reason
        or _why_unsupported(name, tensor)
        or _why_too_small(transform, name, layers, info, shape)
        for verdict, transform in zip(verdicts, transforms, strict=True)
    ]
    acting = [one for one, reason in zip(transforms, reasons, strict=True) if reason is None]
    slices: tuple[LayerSlice, ...] = ()
    if not all(transform.elementwise for transform in acting):
        by_channel = any(transform.granularity == "channel" for transform in acting)
        slices = _slices(tensor, layers.cuts(name, shape), info, by_channel, first_unit)
    sharding, here = Sharding.of(tensor), slices
    if sharding is not None and acting:
        reason = sharding.why_unsupported(tensor, slices)
        if reason is not None:
            raise TypeError(f"{name}: a sharded tensor (DTensor), but {reason}; {_LEAVE_OUT}")
        here, _ = sharding.slices_at(sharding.here(), slices, 0)
    return ParameterEntry(
        name,
        shape,
        acts=tuple(reason is None for reason in reasons),
        why=_explain(transforms, reasons, slices, info, sharding),
        layers=layers,
        slices=slices,
        units=sum(piece.units for piece in slices),
        kernel=name_of(shard_of(tensor), here),
        observed=bool(acting) and not any(transform.writes for transform in acting),
        sharding=sharding,
    )


def _layers_of(
    name: str, said: Sequence[Layers | None], info: ParameterInfo, shape: tuple[int, ...]
) -> Layers:
    """The layers that the tensor holds: as a rule says, else as its module does, else one."""
    rules = list(dict.fromkeys(layers for layers in said if layers is not None))
    for other in rules[1:]:
        if other.cuts(name, shape) != rules[0].cuts(name, shape):
            raise ValueError(
                f"{name}: one transform's rule says {rules[0]!r}, another's {other!r}; say the "
                "same, or leave all but one out"
            )
    if rules and info.transposed and rules[0].cuts(name, shape):
        raise ValueError(
            f"{name}: the weight of a transposed convolution cannot be split; leave out the rule "
            f"that says {rules[0]!r}"
        )
    return rules[0] if rules else info.layers or Layers(1)


def _why_too_small(
    transform: Transform, name: str, layers: Layers, info: ParameterInfo, shape: tuple[int, ...]
) -> str | None:
    """The reason to leave out units of one element, whose z-score is 0 whatever their gradient."""
    if not transform.skips_single_elements:
        return None
    by_channel = transform.granularity == "channel"
    for cut in layers.cuts(name, shape) or (None,):
        piece = shape if cut is None else cut.shape(shape)
        size = math.prod(piece)
        if by_channel and len(piece) > 1 and size:
            size //= piece[_output_dim(cut, info)] * max(1, info.transposed)
        if size == 1:
            return "units of one element"
    return None


def _slices(
    tensor: Tensor, cuts: Sequence[Cut], info: ParameterInfo, by_channel: bool, first_unit: int
) -> tuple[LayerSlice, ...]:
    shape = tuple(tensor.shape)
    # As torch's own optimizers take complex numbers: each as two real ones.
    parts = (2,) if tensor.is_complex() else ()
    if not cuts:
        return (_slice(None, shape, parts, info, by_channel, first_unit),)
    slices: list[LayerSlice] = []
    for cut in cuts:
        slices.append(_slice(cut, cut.shape(shape), parts, info, by_channel, first_unit))
        first_unit += slices[-1].units
    return tuple(slices)


def _slice(
    cut: Cut | None,
    shape: tuple[int, ...],
    parts: tuple[int, ...],
    info: ParameterInfo,
    by_channel: bool,
    first_unit: int,
) -> LayerSlice:
    # A vector has no dim to average over but the output one: it stays one unit.
    if not by_channel or len(shape) < 2 or 0 in shape:
        return LayerSlice(cut, shape + parts, (), first_unit)
    groups = info.transposed
    if groups:
        # The weight is (in, out / groups, ...), its first dim running over groups.
        view = (groups, shape[0] // groups, *shape[1:], *parts)
        return LayerSlice(cut, view, (0, 2), first_unit)
    return LayerSlice(cut, shape + parts, (_output_dim(cut, info),), first_unit)


def _output_dim(cut: Cut | None, info: ParameterInfo) -> int:
    """The dim of a layer that numbers its output channels; of one that is stacked, the first."""
    return 0 if cut is not None and cut.stacked else info.output_dim or 0


def _why_unsupported(name: str, tensor: Tensor) -> str | None:
    """The reason why a parameter cannot be transformed, where it will never have to be.

    Raises
    ------
    TypeError
        Where it will.
    """
    if not (tensor.is_floating_point() or tensor.is_complex()):
        if isinstance(tensor, nn.Parameter) and not tensor.requires_grad:
            return str(tensor.dtype)  # quantized and frozen
        raise TypeError(
            f"{name}: {tensor.dtype} is not supported, only floating point and complex; "
            f"{_LEAVE_OUT}"
        )
    if tensor.dtype == torch.complex32:
        raise TypeError(f"{name}: {tensor.dtype} is not supported; {_LEAVE_OUT}")
    # A shard's own statistics would be silently wrong.
    if getattr(tensor, "tensor_model_parallel", False):
        raise TypeError(
            f"{name}: a shard of tensor parallelism (its tensor_model_parallel is set), of which "
            "other processes hold the rest; of sharded tensors those of torch (DTensor) are "
            f"supported; {_LEAVE_OUT}"
        )
    return None


_LEAVE_OUT = 'leave it out by a rule of select, such as ("NAME", False)'

# Marks that frameworks leave on what they make of parameters: layers end to end in one vector, of
# which each process holds a stretch.
_FLAT = {
    "_is_flat_param": "a flat parameter of FSDP1",
    "_fsdp_flattened": "part of a flat parameter of FSDP1",
    "ds_id": "a partition of DeepSpeed ZeRO",
}


def _check_not_flat(name: str, tensor: Tensor) -> None:
    """Raise for what looks like a vector, and would be left alone without a word.

    Raises
    ------
    TypeError
    """
    for mark, what in _FLAT.items():
        if getattr(tensor, mark, None) not in (None, False):
            raise TypeError(
                f"{name}: {what}, in which layers are no longer apart; of sharded parameters those "
                "of FSDP2 (fully_shard) and other DTensors are supported"
            )


def _explain(
    transforms: Sequence[Transform],
    reasons: Sequence[str | None],
    slices: Sequence[LayerSlice],
    info: ParameterInfo,
    sharding: Sharding | None,
) -> str:
    """The sentence of the table: what acts on the tensor and how, what does not and why."""
    if not transforms:
        return "no transform"
    acting = [one for one, reason in zip(transforms, reasons, strict=True) if reason is None]
    if not acting:
        return ", ".join(dict.fromkeys(reason for reason in reasons if reason is not None))
    if not any(transform.writes for transform in acting):
        return "observed only"
    words = []
    for transform in acting:
        word = type(transform).__name__
        if transform.granularity == "channel" and slices and slices[0].unit_dims:
            assumed = info.output_dim is None or _is_stacked(slices[0])
            word += f" by axis {_axis(slices[0])}" + (", assumed" if assumed else "")
        words.append(word)
    sentences = [", ".join(words)]
    if slices and slices[0].cut is not None:
        sentences.append(f"{len(slices)} layers along axis {slices[0].cut.dim}")
    if sharding is not None and sharding.mesh_dims:
        sentences.append(f"sharded over {sharding.processes} processes")
    sentences += [
        f"not {type(transform).__name__}: {reason}"
        for transform, reason in zip(transforms, reasons, strict=True)
        if reason is not None
    ]
    return "; ".join(sentences)


def _is_stacked(piece: LayerSlice) -> bool:
    return piece.cut is not None and piece.cut.stacked


def _axis(piece: LayerSlice) -> int:
    """The axis of the parameter that numbers a layer's units."""
    if piece.unit_dims == (0, 2):
        return 1  # groups and outputs of a transposed convolution
    (dim,) = piece.unit_dims
    cut = piece.cut
    return dim + (cut is not None and cut.stacked and cut.dim <= dim)
