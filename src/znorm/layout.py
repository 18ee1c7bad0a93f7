"""Which slices of which gradients share a center and a scale, and what acts on each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from znorm import kernels
from znorm.moments import Affine, Moments
from znorm.origins import Origin, origins, origins_of_names
from znorm.rows import Description, rows_of
from znorm.transforms.adaptive import AdaptiveClip
from znorm.transforms.clip import ClipNorm, ClipValue
from znorm.transforms.composition import Chain, Transform, links, stages
from znorm.transforms.observe import Observe
from znorm.transforms.zscore import ZNorm

__all__ = ["Decision", "Layout"]


@dataclass
class Decision:
    """What a chain makes of moments, and what a receipt needs to know of it.

    Parameters
    ----------
    affine : Affine
        The one map of all that is done, an inverse loss scale first.
    links : Affine
        The links alone, which see the gradients without the loss scale.
    before, after : Moments
        Of what the links see, and of what they make of it.
    clipped : Tensor of shape (units,), bool, or None
        Where a clip acted; None if no link is one.
    """

    affine: Affine
    links: Affine
    before: Moments
    after: Moments
    clipped: Tensor | None


@dataclass(frozen=True)
class _Scope:
    """The units that one link acts on, and how they pool into the link's own units."""

    index: Tensor | None
    segment: Tensor | None
    pooled: int

    def affine(self, link: Any, moments: Moments, parameters: Moments | None) -> Affine:
        """The link's map for all units of ``moments``: the identity where it does not act."""
        affine: Affine
        if link.relative:
            assert parameters is not None
            affine = link.decide(self._own(moments), self._own(parameters))
        else:
            affine = link.decide(self._own(moments))
        center, scale = affine.center, affine.scale
        if self.segment is not None:
            center, scale = center[self.segment], scale[self.segment]
        if self.index is not None:
            center = torch.zeros_like(moments.mean).index_copy(0, self.index, center)
            scale = torch.ones_like(moments.mean).index_copy(0, self.index, scale)
        return Affine(center, scale)

    def _own(self, moments: Moments) -> Moments:
        scoped = moments if self.index is None else moments.take(self.index)
        return scoped if self.segment is None else scoped.pool(self.segment, self.pooled)


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
    origins : sequence of Origin, optional
        What is known of each parameter, in place of ``model``.
    every_rule_matches : bool, default True
        Whether a rule that matches nothing raises; not where the parameters are one process's
        share of all.

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
        origins: Sequence[Origin] | None = None,
        every_rule_matches: bool = True,
    ) -> None:
        named = _named(named_parameters)
        known = tuple(origins) if origins is not None else _origins(named, model)
        self.transform: Transform = Chain() if transform is None else transform
        try:
            self.links = links(self.transform)
        except TypeError as error:
            raise TypeError(f"transform: {error}") from None
        self.rows = rows_of(named, known, self.links, every_rule_matches=every_rule_matches)
        self.units = sum(row.units for row in self.rows)
        chosen = [tensor for (_, tensor), row in zip(named, self.rows, strict=True) if row.selected]
        # What is on the meta device is refused once it has a gradient.
        real = [tensor for tensor in chosen if tensor.device.type != "meta"]
        self.device = real[0].device if real else torch.device("cpu")
        # Plans of compiled kernels for gradients of this layout, as they were last seen.
        self.plans: dict[Any, Any] = {}
        self._scopes: dict[tuple[int, torch.device], _Scope | None] = {}
        self._owners: dict[torch.device, Tensor] = {}
        runs = stages(self.transform)
        self.stages: tuple[Layout, ...] = (self,)
        if len(runs) > 1:
            # One layout a reading: what a later reading needs does not slow an earlier one down.
            # The layers that a rule of one link tells hold for all links.
            told = [
                replace(origin, layers=row.held)
                for origin, row in zip(known, self.rows, strict=True)
            ]
            self.stages = tuple(
                Layout(named, Chain(run), origins=told, every_rule_matches=every_rule_matches)
                for run in runs
            )
        sizes = [
            layer.size for row in self.rows for layer in row.layers for _ in range(layer.units)
        ]
        dtype = kernels.reference.statistics_dtype(self.device)
        self.count = torch.tensor(sizes, dtype=dtype, device=self.device)

    @property
    def elementwise(self) -> bool:
        """Whether the whole layout is one elementwise link."""
        return len(self.links) == 1 and isinstance(self.links[0], ClipValue)

    @property
    def observes(self) -> bool:
        """Whether gradients are measured alone, and none is written."""
        return bool(self.links) and all(isinstance(link, Observe) for link in self.links)

    @property
    def z_score(self) -> tuple[float, float, float, float] | None:
        """eps, center, scale and correction, if the whole layout is one ZNorm by tensor."""
        link = self.links[0] if len(self.links) == 1 else None
        if not isinstance(link, ZNorm) or link.granularity != "tensor":
            return None
        return float(link.eps), float(link.center), float(link.scale), float(link.correction)

    @property
    def writes(self) -> bool:
        """Whether any link can change a gradient."""
        return bool(self.links) and not self.observes

    @property
    def relative(self) -> bool:
        """Whether a link's threshold is relative to the parameters, which are then measured too."""
        return any(getattr(link, "relative", False) for link in self.links)

    def __getstate__(self) -> dict[str, Any]:
        # Plans are of this process's memory; a copy makes its own.
        return {**self.__dict__, "plans": {}}

    def describe(self) -> Description:
        """The table of parameters: name, shape, units, kernel, transformed or why not."""
        return Description(tuple(row.as_dict() for row in self.rows))

    def decide(
        self,
        moments: Moments,
        factor: Tensor | None = None,
        parameters: Moments | None = None,
    ) -> Decision:
        """Compose the links' maps, ``factor`` times the gradient before them."""
        device = moments.mean.device
        moments = self._spread_nonfinite(moments)
        start = Affine(torch.zeros_like(moments.mean), torch.ones_like(moments.mean), self)
        if factor is not None:
            start.scale = start.scale * factor.to(device, start.scale.dtype)
            moments = moments.after(start)
        before = moments
        total = Affine(torch.zeros_like(moments.mean), torch.ones_like(moments.mean), self)
        clipped: Tensor | None = None
        for position, link in enumerate(self.links):
            scope = self._scope(position, device)
            if scope is None:
                continue
            affine = scope.affine(link, moments, parameters)
            if isinstance(link, ClipNorm | AdaptiveClip):
                acted = affine.scale < 1
                clipped = acted if clipped is None else clipped | acted
            total = total.then(affine)
            moments = moments.after(affine)
        whole = total if factor is None else start.then(total)
        return Decision(whole, total, before, moments, clipped)

    def by_row(self, flags: Tensor) -> dict[int, Tensor]:
        """Of flags by unit, for each measured row whether any of its units has it."""
        return {
            number: flags[row.first : row.first + row.units].any()
            for number, row in enumerate(self.rows)
            if row.units
        }

    def _spread_nonfinite(self, moments: Moments) -> Moments:
        """A tensor that holds NaN or inf anywhere is NaN in all of its units."""
        bad = ~(torch.isfinite(moments.mean) & torch.isfinite(moments.m2))
        if any(row.units > 1 for row in self.rows):
            owner = self.owner(moments.mean.device)
            count = bad.to(moments.mean.dtype)
            bad = count.new_zeros(len(self.rows)).index_add_(0, owner, count)[owner] > 0
        nan = float("nan")
        return Moments(
            moments.count,
            torch.where(bad, nan, moments.mean),
            torch.where(bad, nan, moments.m2),
            self,
        )

    def owner(self, device: torch.device) -> Tensor:
        """For each unit the number of its row."""
        if device not in self._owners:
            rows = [number for number, row in enumerate(self.rows) for _ in range(row.units)]
            self._owners[device] = torch.tensor(rows, dtype=torch.int64, device=device)
        return self._owners[device]

    def _scope(self, position: int, device: torch.device) -> _Scope | None:
        key = (position, device)
        if key not in self._scopes:
            self._scopes[key] = self._make_scope(position, device)
        return self._scopes[key]

    def _make_scope(self, position: int, device: torch.device) -> _Scope | None:
        link: Any = self.links[position]
        acting = [row for row in self.rows if row.units and row.acts[position]]
        if not acting:
            return None
        index = [unit for row in acting for unit in range(row.first, row.first + row.units)]
        segment: list[int] | None = None
        pooled = len(index)
        if link.joint:
            segment, pooled = [0] * len(index), 1
        elif link.granularity == "tensor":
            layers = [layer for row in acting for layer in row.layers]
            segment = [number for number, layer in enumerate(layers) for _ in range(layer.units)]
            pooled = len(layers)
        return _Scope(
            None if len(index) == self.units else torch.tensor(index, device=device),
            None if pooled == len(index) else torch.tensor(segment, device=device),
            pooled,
        )


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


def _origins(
    named: Sequence[tuple[str | None, Tensor]], model: nn.Module | None
) -> tuple[Origin, ...]:
    if model is None:
        return tuple(origins_of_names([name for name, _ in named]))
    known = origins(model)
    if named and not any(tensor in known for _, tensor in named):
        raise ValueError(
            "model: none of the parameters belongs to it; pass the very model whose parameters "
            "are trained, not a copy"
        )
    return tuple(known.get(tensor, Origin(name, outside=True)) for name, tensor in named)
