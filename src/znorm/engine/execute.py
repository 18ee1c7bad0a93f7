"""Reading and writing gradients: each pass by what kernels serve the tensors, and its report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from znorm._torch_internals import is_plain, is_traced
from znorm.engine.comparison import Compared, Kept, compared_rows, sums_of
from znorm.engine.decide import Decision, by_entry, decide
from znorm.engine.exchange import exchange_of
from znorm.engine.receipts import Readings, Receipt
from znorm.engine.validate import aligned
from znorm.kernels import reference, registry, stacked
from znorm.kernels.base import Coefficients, KernelBatch, StepContext
from znorm.layers import LayerSlice
from znorm.layout import Layout
from znorm.moments import Affine, Moments
from znorm.sharding import shard_of
from znorm.transforms.base import Clamp, ZScore

__all__ = [
    "apply_affine_",
    "compiled_batches",
    "decide_stage",
    "measure",
    "multiply_",
    "multiply_in_float32_",
    "transform_",
]


def transform_(
    gradients: Sequence[Tensor | None],
    layout: Layout,
    *,
    inv_scale: Tensor | None = None,
    parameters: Sequence[Tensor | None] = (),
    receipt: Receipt | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """Transform gradients in place as the layout's transform says: all stages of it.

    Parameters
    ----------
    gradients : sequence of Tensor or None
    layout : Layout
    inv_scale : Tensor of one element, optional
        What gradients are multiplied by before all else, the inverse of a loss scale: so that
        epsilons and thresholds need no rule of their own and half-precision gradients are rounded
        once.
    parameters : sequence of Tensor or None
        Where the layout compares with them; None where the gradient is.
    receipt : Receipt, optional
        Counts the step, unless it is skipped.
    found_inf : Tensor of one element, optional
        Not 0 if the optimizer will skip this step.
    """
    tensors = aligned(gradients, layout)
    if layout.elementwise:
        readings = _map_(tensors, layout.local, inv_scale, receipt)
        if receipt is not None and (readings or layout.sharded):
            receipt.add(receipt.of_readings(readings, None), found_inf)
        return
    if len(layout.stages) > 1:
        _stages_(tensors, layout, inv_scale, parameters, receipt, found_inf)
        return
    if layout.observes:
        decision = None
        if receipt is not None:
            decision = decide(layout, measure(tensors, layout), inv_scale)
    else:
        context = StepContext(inv_scale, found_inf, receipt)
        decision = _measured_stage_(tensors, layout, context, parameters)
    if receipt is not None and decision is not None:
        receipt.add(receipt.of_decision(decision), found_inf)


def _stages_(
    tensors: Sequence[Tensor | None],
    layout: Layout,
    inv_scale: Tensor | None,
    parameters: Sequence[Tensor | None],
    receipt: Receipt | None,
    found_inf: Tensor | None,
) -> None:
    """Transform by several stages, each of which reads the gradients anew."""
    # What an elementwise stage does to norms cannot be told from moments: it is read off the
    # gradients.
    written = [
        tensor if entry.selected and tensor is not None and tensor.numel() else None
        for entry, tensor in zip(layout.entries, tensors, strict=True)
    ]
    kept = None if receipt is None else Kept(written, layout)
    clipped = None
    if receipt is not None:
        clipped = torch.zeros(len(layout.entries), dtype=torch.bool, device=layout.device)
    scale = inv_scale
    for stage in layout.stages:
        if stage.elementwise:
            _map_(tensors, stage.local, scale, None, clipped)
        else:
            decision = _measured_stage_(tensors, stage, StepContext(scale), parameters)
            if clipped is not None and decision is not None and decision.clipped is not None:
                clipped |= by_entry(stage, decision.clipped).to(clipped.device)
        scale = None
    if receipt is None or kept is None or clipped is None:
        return
    readings = [
        receipt.readings(
            one.indices, one.sizes, one.sums, clipped[_rows(one, layout, clipped.device)]
        )
        for one in kept.compared(written)
    ]
    if readings or layout.sharded:
        receipt.add(receipt.of_readings(readings, inv_scale), found_inf)


def _measured_stage_(
    tensors: Sequence[Tensor | None],
    stage: Layout,
    context: StepContext,
    parameters: Sequence[Tensor | None],
) -> Decision | None:
    """Transform by one stage; None if kernels did it all, the receipt of the context too."""
    if context.inv_scale is not None:
        unmeasured = zip(tensors, stage.entries, strict=True)
        multiply_((tensor for tensor, entry in unmeasured if not entry.units), context.inv_scale)
    form = stage.fused_form
    if isinstance(form, ZScore) and _normalize_compiled_(tensors, stage, form, context):
        return None
    decision = decide_stage(tensors, stage, context.inv_scale, parameters)
    apply_affine_(tensors, decision.affine, stage, after=decision.after)
    return decision


def decide_stage(
    gradients: Sequence[Tensor | None],
    stage: Layout,
    inv_scale: Tensor | None,
    parameters: Sequence[Tensor | None],
) -> Decision:
    """Measure what the layout's transforms need, and decide; nothing is written."""
    weights = None
    if stage.uses_parameters:
        weights = _measure_parameters(gradients, stage, parameters)
    return decide(stage, measure(gradients, stage), inv_scale, weights)


def _measure_parameters(
    gradients: Sequence[Tensor | None], stage: Layout, parameters: Sequence[Tensor | None]
) -> Moments:
    """Moments of the parameters that have a gradient."""
    present = [
        None if gradient is None else parameter
        for parameter, gradient in zip(parameters, gradients, strict=True)
    ]
    shards = [None if parameter is None else shard_of(parameter) for parameter in present]
    for entry, parameter, gradient in zip(stage.entries, shards, gradients, strict=True):
        if parameter is None or gradient is None or not entry.units or is_plain(parameter):
            continue
        if is_plain(gradient):
            raise TypeError(
                f"{entry.name}: {stage.transform!r} compares with weights, and those of "
                f"{type(parameter).__name__} cannot be measured; leave it out by a rule of "
                'select, such as ("NAME", False)'
            )
    return measure(aligned(present, stage), stage, weights=True)


def measure(tensors: Sequence[Tensor | None], layout: Layout, *, weights: bool = False) -> Moments:
    """Count, mean and sum of squared deviations of each unit of the layout.

    ``weights`` says that these are the parameters themselves, constants to what is differentiated.
    Of sharded tensors every process measures its shards, and has to call this.
    """
    if layout.sharded:
        return exchange_of(layout).merged(measure(tensors, layout.local, weights=weights))
    count = _count(tensors, layout)
    batches = compiled_batches(tensors, layout, measures=True, weights=weights)
    compiled = count.new_zeros(2, layout.units)
    for batch in batches:
        batch.measure(tensors, compiled)
    if batches and _missing(tensors, layout):
        # Kernels leave alone what is missing; what they keep is of another step.
        compiled = torch.where(count == 0, 0.0, compiled)
    done = {index for batch in batches for index in batch.indices}
    present = (
        index
        for index, (pieces, tensor) in enumerate(zip(layout.slices, tensors, strict=True))
        if pieces and tensor is not None and tensor.numel()
    )
    if done.issuperset(present):
        return Moments(count, compiled[0], compiled[1], layout)
    views = {
        piece.first_unit: (piece, piece.view_of(_real(tensor.detach() if weights else tensor)))
        for index, (pieces, tensor) in enumerate(zip(layout.slices, tensors, strict=True))
        if index not in done and tensor is not None and tensor.numel()
        for piece in pieces
    }
    together = [unit for unit, (piece, view) in views.items() if stacked.measures(piece, view)]
    measured = dict(
        zip(together, stacked.moments([views[unit] for unit in together], count), strict=True)
    )
    parts: list[Tensor] = []
    for piece in (piece for pieces in layout.slices for piece in pieces):
        unit = piece.first_unit
        if unit in measured:
            both = measured[unit]
        elif unit in views:
            both = reference.moments(views[unit][1], piece.unit_dims)
        else:
            both = compiled[:, unit : unit + piece.units]
        parts.append(both if both.device == layout.device else both.to(layout.device))
    mean, m2 = torch.cat(parts, 1)
    return Moments(count, mean, m2, layout)


def _count(tensors: Sequence[Tensor | None], layout: Layout) -> Tensor:
    """Elements of each unit; 0 where the gradient is missing."""
    missing = _missing(tensors, layout)
    if not missing:
        return layout.count.clone()
    known = layout.cache.get("count")
    if known is None or known[0] != missing:
        count = layout.count.clone()
        for index in missing:
            units = layout.entries[index].unit_range
            count[units.start : units.stop] = 0
        known = layout.cache["count"] = missing, count
    present: Tensor = known[1]
    return present.clone()


def _missing(tensors: Sequence[Tensor | None], layout: Layout) -> list[int]:
    """The places of gradients that are missing and would be measured."""
    return [
        index
        for index, (pieces, tensor) in enumerate(zip(layout.slices, tensors, strict=True))
        if pieces and tensor is None
    ]


def compiled_batches(
    tensors: Sequence[Tensor | None],
    layout: Layout,
    *,
    measures: bool,
    everything: bool = False,
    weights: bool = False,
    kept: bool = True,
) -> list[KernelBatch]:
    """The tensors that compiled kernels serve: those that are measured, or everything.

    The batches are kept with the layout, or are the caller's own.
    """
    if torch.is_grad_enabled():
        return []
    return registry.batches(
        tensors,
        layout.slices,
        units=layout.units,
        measures=measures,
        everything=everything,
        weights=weights,
        cache=layout.cache if kept else {},
    )


def apply_affine_(
    tensors: Sequence[Tensor | None],
    affine: Affine,
    layout: Layout,
    *,
    after: Moments | None = None,
) -> None:
    """Write ``(g - center) * scale`` to each measured tensor.

    ``after``, the moments that come out, tells what `reference.apply_` may do in one operation.
    """
    if layout.sharded:
        exchange = exchange_of(layout)
        after = None if after is None else exchange.moments_here(after)
        affine, layout = exchange.here(affine), layout.local
    batches = compiled_batches(tensors, layout, measures=False)
    for batch in batches:
        batch.apply_affine_(tensors, Coefficients(affine.center, affine.scale))
        _mark_written(batch, tensors)
    done = {index for batch in batches for index in batch.indices}
    views = [
        (piece, piece.view_of(_real(tensor)))
        for index, (pieces, tensor) in enumerate(zip(layout.slices, tensors, strict=True))
        if index not in done and tensor is not None and tensor.numel()
        for piece in pieces
    ]
    near = _near([piece for piece, _ in views], affine, after)
    kinds: dict[tuple[torch.device, torch.dtype], list[tuple[LayerSlice, Tensor]]] = {}
    for piece, view in views:
        kinds.setdefault((view.device, view.dtype), []).append((piece, view))
    for (device, dtype), alike in kinds.items():
        center, scale = affine.center.to(device), affine.scale.to(device)
        centers, scales = reference.split(center, scale, dtype)
        if stacked.writes(alike[0][1]):
            stacked.apply_(alike, centers, scales)
            continue
        offsets = (-center * scale).to(scales.dtype)
        for piece, view in alike:
            one_pass = piece.first_unit in near
            reference.apply_(
                view,
                () if one_pass else tuple(piece.broadcast(center) for center in centers),
                piece.broadcast(scales),
                piece.broadcast(offsets) if one_pass else None,
            )


def _near(pieces: Sequence[LayerSlice], affine: Affine, after: Moments | None) -> set[int]:
    """The units of whole tensors that `reference.apply_` may take in one operation."""
    if after is None or after.m2.device.type != "cpu" or torch.is_grad_enabled() or is_traced():
        return set()
    units = [piece.first_unit for piece in pieces if not piece.unit_dims]
    if not units:
        return set()
    center, scale, count, m2 = torch.stack([affine.center, affine.scale, after.count, after.m2])[
        :, units
    ]
    close = (center * scale).square() * count <= m2
    close &= scale < torch.finfo(torch.float32).max
    return {unit for unit, one in zip(units, close.tolist(), strict=True) if one}


def _normalize_compiled_(
    tensors: Sequence[Tensor | None], stage: Layout, z_score: ZScore, context: StepContext
) -> bool:
    """Measure, decide and apply tensor by tensor, each while it is in cache.

    Returns
    -------
    bool
        False, and nothing done, if the kernels do not serve all of them.
    """
    if stage.sharded:
        return False
    batches = compiled_batches(tensors, stage, measures=True)
    if any(batch.device != stage.device for batch in batches):
        return False
    done = {index for batch in batches for index in batch.indices}
    for index, (entry, tensor) in enumerate(zip(stage.entries, tensors, strict=True)):
        served = index in done and entry.units == 1
        if entry.units and not served and tensor is not None and tensor.numel():
            return False
    for batch in batches:
        batch.normalize_(tensors, z_score, context)
        _mark_written(batch, tensors)
    return True


def _map_(
    tensors: Sequence[Tensor | None],
    stage: Layout,
    inv_scale: Tensor | None,
    receipt: Receipt | None,
    clipped: Tensor | None = None,
) -> list[Readings]:
    """Transform by one elementwise transform, with readings for a receipt.

    ``clipped``, of a flag for each entry, is set where a clip acts.
    """
    transform, form = stage.transforms[0], stage.fused_form
    if inv_scale is not None:
        multiply_(tensors, inv_scale)
    chosen = [
        tensor if entry.selected and tensor is not None and tensor.numel() else None
        for entry, tensor in zip(stage.entries, tensors, strict=True)
    ]
    watched = receipt is not None or clipped is not None
    changes: Iterable[Compared]
    if isinstance(form, Clamp):
        changes = _clamp_(chosen, stage, form, watched=watched, reads=receipt is not None)
    else:
        kept = Kept(chosen, stage) if watched else None
        for tensor in chosen:
            if tensor is not None:
                transform.apply_(_real(tensor))
        changes = () if kept is None else kept.compared(chosen)
    readings: list[Readings] = []
    for change in changes:
        acted = change.changed if transform.is_clip else torch.zeros_like(change.changed)
        if clipped is not None:
            clipped[_rows(change, stage, clipped.device)] |= acted.to(clipped.device)
        if receipt is not None:
            readings.append(receipt.readings(change.indices, change.sizes, change.sums, acted))
    return readings


def _rows(one: Compared, layout: Layout, device: torch.device) -> Tensor | slice:
    """The places of some tensors as an index on a device, to which it is copied once."""
    if len(one.indices) == 1:
        return slice(one.indices[0], one.indices[0] + 1)
    key = ("rows", one.indices, device)
    if key not in layout.cache:
        layout.cache[key] = torch.tensor(one.indices, device=device)
    index: Tensor = layout.cache[key]
    return index


def _clamp_(
    tensors: Sequence[Tensor | None], stage: Layout, clamp: Clamp, *, watched: bool, reads: bool
) -> Iterator[Compared]:
    """Clamp tensors and tell what has become of them, if watched; ``reads`` asks for sums, too."""
    done: set[int] = set()
    for batch in compiled_batches(tensors, stage, measures=False, everything=True):
        if not batch.clamps:
            continue
        read = batch.clamp_(tensors, clamp.bound)
        _mark_written(batch, tensors)
        done.update(batch.indices)
        yield compared_rows(batch.indices, tensors, read, stage)
    for index, tensor in enumerate(tensors):
        if tensor is None or index in done:
            continue
        real = _real(tensor)
        if not watched:
            stage.transforms[0].apply_(real)
            continue
        before = tensor.clone() if reads else None
        # The largest and the smallest, which is one reading.
        low, high = real.detach().aminmax()
        stage.transforms[0].apply_(real)
        changed = (high > clamp.bound) | (low < -clamp.bound)
        sums = low.new_zeros(4) if before is None else sums_of(before, tensor)
        yield Compared((index,), (real.numel(),), sums[None], changed[None])


def _mark_written(batch: KernelBatch, tensors: Sequence[Tensor | None]) -> None:
    """Tell autograd that kernels have changed a batch's tensors, which it cannot see.

    A graph that has kept one of them then raises, as after torch's own operations.
    """
    chosen = (tensors[index] for index in batch.indices)
    torch.autograd.graph.increment_version([t for t in chosen if t is not None])


def _real(tensor: Tensor) -> Tensor:
    """Complex numbers as two real ones each, as torch's own optimizers take them."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def multiply_(tensors: Iterable[Tensor | None], inv_scale: Tensor) -> None:
    """Multiply tensors by the inverse of a loss scale, in place."""
    together: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        if tensor is None:
            continue
        # What a type of its own, or a trace, makes of a list nobody knows.
        if type(tensor) is Tensor and tensor.layout == torch.strided and not is_traced():
            together.setdefault((tensor.device, tensor.dtype), []).append(tensor)
        else:
            tensor.mul_(inv_scale.to(tensor.device))
    for (device, dtype), several in together.items():
        scale = inv_scale.to(device).reshape(())
        if device.type == "cpu":  # where a product is of the wider type, and rounded once
            torch._foreach_mul_(several, scale)
        elif dtype in (torch.float16, torch.bfloat16):
            multiply_in_float32_(several, scale)
        else:  # by a scale of another dtype torch goes tensor by tensor
            torch._foreach_mul_(several, scale.to(dtype))


def multiply_in_float32_(tensors: list[Tensor], scale: Tensor) -> None:
    """Multiply tensors of half precision, rounded once.

    A GPU rounds the scale to their type, in which it can be 0, as 2^-25 is in float16.
    """
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors]).float() * scale.float()
    parts = flat.split([tensor.numel() for tensor in tensors])
    wide = [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
    torch._foreach_copy_(tensors, wide)
