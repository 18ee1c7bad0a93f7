"""The layout of parameters: which slices of which gradients share a center and a scale."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from znorm.entries import Description, ParameterEntry, entries_of
from znorm.kernels.reference import statistics_dtype
from znorm.parameter_info import (
    ParameterInfo,
    infos_from_names,
    parameter_infos,
    why_none_belongs,
)
from znorm.transforms.base import FusedForm, Transform, form_of
from znorm.transforms.composition import Chain, stages, transforms_of

__all__ = ["Layout"]


class Layout:
    """Parameters, what a transform does to each, and where its units lie.

    Made from parameters, never from gradients, so that it is the same on every process and in
    every step.

    Parameters
    ----------
    named_parameters : iterable of (str, Tensor) or of Tensor
        As ``model.named_parameters()`` gives them. Gradients are later expected in this order.
    transform : transform or None
        None and ``chain()`` leave everything alone.
    model : torch.nn.Module, optional
        Tells the type of the module that owns each parameter: which are normalizations, and which
        axis is the output of a transposed convolution.
    infos : sequence of ParameterInfo, optional
        What is known of each parameter, in place of ``model``.
    every_rule_matches : bool, default True
        Whether a rule that matches nothing raises; not where the parameters are one process's
        share of all.

    Attributes
    ----------
    distributed : bool
        Whether some parameters are those of several processes (DTensor), replicas too.
    sharded : bool
        Whether processes hold a part each of some parameters.
    local : Layout
        That of what this process holds; this one, where nothing is sharded.

    Raises
    ------
    TypeError, ValueError
        Naming the parameter or rule, what was found and what to do.

    Examples
    --------
    >>> import torch, znorm
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    >>> layout = znorm.Layout(net.named_parameters(), znorm.Centralize(), model=net)
    >>> print(layout.describe())
    name      shape         units  kernel  transformed
    0.weight  (8, 3, 3, 3)  8      cpu     yes: Centralize by axis 0
    0.bias    (8,)          0      cpu     no: one dimension
    1.weight  (8,)          0      cpu     no: one dimension
    1.bias    (8,)          0      cpu     no: one dimension
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str | None, Tensor] | Tensor],
        transform: Transform | None,
        *,
        model: nn.Module | None = None,
        infos: Sequence[ParameterInfo] | None = None,
        every_rule_matches: bool = True,
    ) -> None:
        named = _named(named_parameters)
        known = tuple(infos) if infos is not None else _infos(named, model)
        self.transform: Transform = Chain() if transform is None else transform
        try:
            self.transforms = transforms_of(self.transform)
        except TypeError as error:
            raise TypeError(f"transform: {error}") from None
        self.entries = entries_of(
            named, known, self.transforms, every_rule_matches=every_rule_matches
        )
        self.slices = tuple(entry.slices for entry in self.entries)
        self.units = sum(entry.units for entry in self.entries)
        chosen = [t for (_, t), entry in zip(named, self.entries, strict=True) if entry.selected]
        # What is on the meta device is refused once it has a gradient.
        real = [tensor for tensor in chosen if tensor.device.type != "meta"]
        self.device = real[0].device if real else torch.device("cpu")
        # What the engine has made for this layout: batches of kernels, indices of units.
        self.cache: dict[Any, Any] = {}
        runs = stages(self.transforms)
        self.stages: tuple[Layout, ...] = (self,)
        if len(runs) > 1:
            # One layout a reading: what a later reading needs does not slow an earlier one down.
            # The layers that a rule of one transform tells hold for all of them.
            told = [
                replace(info, layers=entry.layers)
                for info, entry in zip(known, self.entries, strict=True)
            ]
            self.stages = tuple(
                Layout(named, Chain(run), infos=told, every_rule_matches=every_rule_matches)
                for run in runs
            )
        self.count = self._counts()
        shardings = [e.sharding for e in self.entries if e.sharding is not None]
        self.distributed = bool(shardings)
        self.sharded = any(sharding.mesh_dims for sharding in shardings)
        self.local = self._local() if self.sharded else self

    def _counts(self) -> Tensor:
        """The elements of each unit."""
        sizes = [
            piece.size for pieces in self.slices for piece in pieces for _ in range(piece.units)
        ]
        return torch.tensor(sizes, dtype=statistics_dtype(self.device), device=self.device)

    def _local(self) -> Layout:
        """The layout of the shards that this process holds, its units numbered anew."""
        local = copy(self)
        entries: list[ParameterEntry] = []
        first_unit = 0
        for entry in self.entries:
            shape, slices = entry.here(first_unit)
            units = sum(piece.units for piece in slices)
            entries.append(replace(entry, shape=shape, slices=slices, units=units))
            first_unit += units
        local.entries = tuple(entries)
        local.slices = tuple(entry.slices for entry in entries)
        local.units = first_unit
        local.cache = {}
        local.stages = (local,)
        local.sharded = False
        local.count = local._counts()
        local.local = local
        return local

    @property
    def elementwise(self) -> bool:
        """True if the whole layout is one elementwise transform."""
        return len(self.transforms) == 1 and self.transforms[0].elementwise

    @cached_property
    def fused_form(self) -> FusedForm | None:
        """The form that compiled kernels do by themselves, if the layout is one such transform."""
        return form_of(self.transforms[0]) if len(self.transforms) == 1 else None

    @property
    def writes(self) -> bool:
        """True if any transform can change a gradient."""
        return any(transform.writes for transform in self.transforms)

    @property
    def observes(self) -> bool:
        """True if gradients are measured alone, and none is written."""
        return bool(self.transforms) and not self.writes

    @property
    def uses_parameters(self) -> bool:
        """True if a transform compares with the parameters, which are then measured too."""
        return any(transform.uses_parameters for transform in self.transforms)

    def __getstate__(self) -> dict[str, Any]:
        # Batches are of this process's memory; a copy makes its own.
        return {**self.__dict__, "cache": {}}

    def describe(self) -> Description:
        """The table of parameters: name, shape, units, kernel, transformed or why not."""
        return Description(tuple(entry.as_dict() for entry in self.entries))


def _named(
    parameters: Iterable[tuple[str | None, Tensor] | Tensor],
) -> list[tuple[str | None, Tensor]]:
    if isinstance(parameters, Tensor):
        raise TypeError("layout: expected a list of parameters, found one tensor; put it in a list")
    named: list[tuple[str | None, Tensor]] = []
    for position, item in enumerate(parameters):
        pair = item if isinstance(item, tuple) else (None, item)
        if (
            len(pair) != 2
            or not isinstance(pair[1], Tensor)
            or not isinstance(pair[0], str | type(None))
        ):
            raise TypeError(
                f"layout: entry {position} must be a tensor or (name, tensor), found {item!r}"
            )
        named.append(pair)
    places: dict[Tensor, int] = {}
    for position, (name, tensor) in enumerate(named):
        if places.setdefault(tensor, position) != position:
            raise ValueError(
                f"layout: entry {position} ({name or 'without a name'}) is the tensor of entry "
                f"{places[tensor]} again; give each once"
            )
    return named


def _infos(
    named: Sequence[tuple[str | None, Tensor]], model: nn.Module | None
) -> tuple[ParameterInfo, ...]:
    if model is None:
        return tuple(infos_from_names([name for name, _ in named]))
    known = parameter_infos(model)
    if named and not any(tensor in known for _, tensor in named):
        raise ValueError(f"model: none of the parameters belongs to it; {why_none_belongs(model)}")
    return tuple(known.get(tensor, ParameterInfo(name, outside=True)) for name, tensor in named)
