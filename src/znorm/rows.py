"""What a transform does to each parameter: one row for each, with the layers that it holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from znorm import kernels
from znorm.layers import Cut, Layer, Layers, is_dense
from znorm.origins import Origin
from znorm.selection import Selector
from znorm.transforms.clip import ClipValue
from znorm.transforms.composition import Link
from znorm.transforms.observe import Observe

__all__ = ["Description", "Row", "is_dtensor", "is_plain", "rows_of"]

OBSERVED = "observed only"


@dataclass(frozen=True)
class Row:
    """One parameter of a layout.

    Parameters
    ----------
    name : str
        As shown in messages.
    shape : tuple of int
    acts : tuple of bool
        For each link whether it acts on this tensor.
    why : str
        Why it is transformed in this way, or why not.
    held : Layers
        The layers that it holds.
    layers : tuple of Layer
        What of it is measured; none if nothing is.
    units : int
        Of all of its layers.
    kernel : str
        Which kernels serve it.
    """

    name: str
    shape: tuple[int, ...]
    acts: tuple[bool, ...]
    why: str
    held: Layers
    layers: tuple[Layer, ...]
    units: int
    kernel: str

    @property
    def selected(self) -> bool:
        """Whether any link acts on it."""
        return any(self.acts)

    @property
    def first(self) -> int:
        """The place of its first unit, if it has any."""
        return self.layers[0].first

    def fits_kernels(self, tensor: Tensor) -> bool:
        """Whether compiled kernels can take a tensor of this row, each unit a stretch of memory."""
        return (
            is_plain(tensor)
            and _is_stretched(tensor, self.layers)
            and tensor.numel() > 0
            and not tensor.requires_grad
            and not tensor.is_neg()
        )

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "shape": self.shape,
            "units": self.units,
            "kernel": self.kernel,
            "transformed": self.selected and self.why != OBSERVED,
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


def rows_of(
    named: Sequence[tuple[str | None, Tensor]],
    known: Sequence[Origin],
    links: Sequence[Link],
    *,
    every_rule_matches: bool = True,
) -> tuple[Row, ...]:
    """A row for each parameter, for a chain of these links.

    ``every_rule_matches`` is False where parameters are one process's share of all: a rule may then
    match another one's.

    Raises
    ------
    TypeError, ValueError
        For a parameter that a link acts on and that cannot be transformed or split; for a rule
        that matches nothing.
    """
    selectors = [
        Selector(
            type(link).__name__,
            link.select,
            type(link).__dataclass_fields__["select"].default,  # type: ignore[union-attr]
            link.skips_single_elements,
        )
        for link in links
    ]
    rows: list[Row] = []
    first = 0
    for position, ((label, tensor), origin) in enumerate(zip(named, known, strict=True)):
        if isinstance(tensor, nn.UninitializedParameter):
            raise ValueError(
                f"{label or position}: not initialized yet; run one forward pass first"
            )
        name = label or origin.name or f"parameter {position} {tuple(tensor.shape)}"
        shape = tuple(tensor.shape)
        verdicts = [selector.judge(tensor, origin, name) for selector in selectors]
        if not all((reason or "").startswith("rule ") for reason, _ in verdicts):
            _check_not_flat(name, tensor)
        held = _held(name, [layers for _, layers in verdicts], origin, shape)
        reasons = [
            reason
            or _why_unsupported(name, tensor)
            or _why_too_small(link, name, held, origin, shape)
            for (reason, _), link in zip(verdicts, links, strict=True)
        ]
        acts = tuple(reason is None for reason in reasons)
        layers: tuple[Layer, ...] = ()
        if any(
            act and not isinstance(link, ClipValue) for link, act in zip(links, acts, strict=True)
        ):
            by_channel = any(
                act and getattr(link, "granularity", "") == "channel"
                for link, act in zip(links, acts, strict=True)
            )
            layers = _layers(tensor, held.cuts(name, shape), origin, by_channel, first)
        rows.append(
            Row(
                name,
                shape,
                acts,
                _explain(links, reasons, layers, origin),
                held,
                layers,
                sum(layer.units for layer in layers),
                kernels.name_of(tensor, _is_stretched(tensor, layers)),
            )
        )
        first += rows[-1].units
    if named and every_rule_matches:
        for selector in selectors:
            selector.check_all_matched()
    return tuple(rows)


def _held(
    name: str, said: Sequence[Layers | None], origin: Origin, shape: tuple[int, ...]
) -> Layers:
    """The layers that the tensor holds: as a rule says, else as its module does, else one."""
    rules = list(dict.fromkeys(layers for layers in said if layers is not None))
    for other in rules[1:]:
        if other.cuts(name, shape) != rules[0].cuts(name, shape):
            raise ValueError(
                f"{name}: one link's rule says {rules[0]!r}, another's {other!r}; say the same, "
                "or leave all but one out"
            )
    if rules and origin.transposed and rules[0].cuts(name, shape):
        raise ValueError(
            f"{name}: the weight of a transposed convolution cannot be split; leave out the rule "
            f"that says {rules[0]!r}"
        )
    return rules[0] if rules else origin.layers or Layers(1)


def _why_too_small(
    link: Link, name: str, held: Layers, origin: Origin, shape: tuple[int, ...]
) -> str | None:
    """Of one element the z-score is 0 whatever its gradient: it would never be trained."""
    if not link.skips_single_elements:
        return None
    by_channel = getattr(link, "granularity", "") == "channel"
    for cut in held.cuts(name, shape) or (None,):
        piece = shape if cut is None else cut.shape(shape)
        size = math.prod(piece)
        if by_channel and len(piece) > 1 and size:
            size //= piece[_output_dim(cut, origin)] * max(1, origin.transposed)
        if size == 1:
            return "units of one element"
    return None


def _layers(
    tensor: Tensor, cuts: Sequence[Cut], origin: Origin, by_channel: bool, first: int
) -> tuple[Layer, ...]:
    shape = tuple(tensor.shape)
    # As torch's own optimizers take complex numbers: each as two real ones.
    parts = (2,) if tensor.is_complex() else ()
    if not cuts:
        return (_layer(None, shape, parts, origin, by_channel, first),)
    found: list[Layer] = []
    for cut in cuts:
        found.append(_layer(cut, cut.shape(shape), parts, origin, by_channel, first))
        first += found[-1].units
    return tuple(found)


def _layer(
    cut: Cut | None,
    shape: tuple[int, ...],
    parts: tuple[int, ...],
    origin: Origin,
    by_channel: bool,
    first: int,
) -> Layer:
    # A vector has no dim to average over but the output one: it stays one unit.
    if not by_channel or len(shape) < 2 or 0 in shape:
        return Layer(cut, shape + parts, (), first)
    groups = origin.transposed
    if groups:
        # The weight is (in, out / groups, ...), its first dim running over groups.
        view = (groups, shape[0] // groups, *shape[1:], *parts)
        return Layer(cut, view, (0, 2), first)
    return Layer(cut, shape + parts, (_output_dim(cut, origin),), first)


def _output_dim(cut: Cut | None, origin: Origin) -> int:
    """The dim of a layer that numbers its output channels; of one that is stacked, the first."""
    return 0 if cut is not None and cut.stacked else origin.output_dim or 0


def _is_stretched(tensor: Tensor, layers: Sequence[Layer]) -> bool:
    if tensor.layout != torch.strided:
        return False
    shape, stride = tuple(tensor.shape), tensor.stride()
    return is_dense(shape, stride) and all(layer.stretch(shape, stride) for layer in layers)


def _why_unsupported(name: str, tensor: Tensor) -> str | None:
    """Why a parameter cannot be transformed, where it will never have to be.

    Raises
    ------
    TypeError
        Where it will.
    """
    leave_out = 'leave it out by a rule of select, such as ("NAME", False)'
    if not (tensor.is_floating_point() or tensor.is_complex()):
        if isinstance(tensor, nn.Parameter) and not tensor.requires_grad:
            return str(tensor.dtype)  # quantized and frozen
        raise TypeError(
            f"{name}: {tensor.dtype} is not supported, only floating point and complex; {leave_out}"
        )
    if tensor.dtype == torch.complex32:
        raise TypeError(f"{name}: {tensor.dtype} is not supported; {leave_out}")
    # A shard's own statistics would be silently wrong; named by duck type, since importing
    # torch.distributed.tensor costs 0.2 s.
    if is_dtensor(tensor):
        raise TypeError(f"{name}: sharded tensors (DTensor) are not supported yet; {leave_out}")
    if getattr(tensor, "tensor_model_parallel", False):
        raise TypeError(
            f"{name}: a shard of tensor parallelism (its tensor_model_parallel is set), of which "
            f"other processes hold the rest; sharded tensors are not supported yet; {leave_out}"
        )
    return None


def is_plain(tensor: Tensor) -> bool:
    """Whether its elements lie where ``data_ptr()`` says; of a subclass that dispatches they don't.

    Fake tensors, DTensors and quantized ones are such.
    """
    plain = type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__
    return plain and not tensor._is_zerotensor()


def is_dtensor(tensor: Tensor) -> bool:
    """Whether it is one process's view of a tensor that several hold."""
    return hasattr(tensor, "placements") and hasattr(tensor, "device_mesh")


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
                f"{name}: {what}, in which layers are no longer apart; sharded parameters are not "
                "supported yet"
            )


def _explain(
    links: Sequence[Link],
    reasons: Sequence[str | None],
    layers: Sequence[Layer],
    origin: Origin,
) -> str:
    if not links:
        return "no transform"
    acting = [link for link, reason in zip(links, reasons, strict=True) if reason is None]
    if not acting:
        return ", ".join(dict.fromkeys(reason for reason in reasons if reason is not None))
    if all(isinstance(link, Observe) for link in acting):
        return OBSERVED
    parts = []
    for link in acting:
        part = type(link).__name__
        if getattr(link, "granularity", "") == "channel" and layers and layers[0].unit_dims:
            assumed = origin.output_dim is None or _is_stacked(layers[0])
            part += f" by axis {_axis(layers[0])}" + (", assumed" if assumed else "")
        parts.append(part)
    text = ", ".join(parts)
    extra = []
    if layers and layers[0].cut is not None:
        extra.append(f"{len(layers)} layers along axis {layers[0].cut.dim}")
    left_out = [
        f"not {type(link).__name__}: {reason}"
        for link, reason in zip(links, reasons, strict=True)
        if reason is not None
    ]
    return "; ".join([text, *extra, *left_out])


def _is_stacked(layer: Layer) -> bool:
    return layer.cut is not None and layer.cut.stacked


def _axis(layer: Layer) -> int:
    """The axis of the parameter that numbers a layer's units."""
    if layer.unit_dims == (0, 2):
        return 1  # groups and outputs of a transposed convolution
    (dim,) = layer.unit_dims
    cut = layer.cut
    return dim + (cut is not None and cut.stacked and cut.dim <= dim)
