"""Reading and writing gradients: each pass by what kernels serve the tensors, and its report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from znorm._torch_internals import is_plain, is_traced
from znorm.engine.decide import Decision, by_entry, decide
from znorm.engine.receipts import Readings, Receipt
from znorm.engine.validate import aligned
from znorm.kernels import reference, registry
from znorm.kernels.base import Coefficients, KernelBatch, StepContext
from znorm.layout import Layout
from znorm.moments import Affine, Moments
from znorm.transforms.base import Clamp, FusedForm, Transform, ZScore

__all__ = [
    "apply_affine_",
    "compiled_batches",
    "decide_stage",
    "measure",
    "multiply_",
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
        readings = _map_(tensors, layout, inv_scale, receipt)
        if receipt is not None and readings:
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
        (index, gradient)
        for index, (entry, gradient) in enumerate(zip(layout.entries, tensors, strict=True))
        if entry.selected and gradient is not None and gradient.numel()
    ]
    before = [gradient.clone() for _, gradient in written] if receipt is not None else []
    clipped = None
    if receipt is not None:
        clipped = torch.zeros(len(layout.entries), dtype=torch.bool, device=layout.device)
    scale = inv_scale
    for stage in layout.stages:
        if stage.elementwise:
            _map_(tensors, stage, scale, None, clipped)
        else:
            decision = _measured_stage_(tensors, stage, StepContext(scale), parameters)
            if clipped is not None and decision is not None and decision.clipped is not None:
                clipped |= by_entry(stage, decision.clipped).to(clipped.device)
        scale = None
    if receipt is None or clipped is None or not written:
        return
    readings = [
        receipt.read(index, kept, gradient, clipped[index])
        for (index, gradient), kept in zip(written, before, strict=True)
    ]
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
    apply_affine_(tensors, decision.affine, stage, near=_near(decision))
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
        None if gradient is None or parameter is None else parameter.detach()
        for parameter, gradient in zip(parameters, gradients, strict=True)
    ]
    for entry, parameter, gradient in zip(stage.entries, present, gradients, strict=True):
        if parameter is None or gradient is None or not entry.units or is_plain(parameter):
            continue
        if is_plain(gradient):
            raise TypeError(
                f"{entry.name}: {stage.transform!r} compares with weights, and those of "
                f"{type(parameter).__name__} cannot be measured; leave it out by a rule of "
                'select, such as ("NAME", False)'
            )
    return measure(aligned(present, stage), stage)


def measure(tensors: Sequence[Tensor | None], layout: Layout) -> Moments:
    """Count, mean and sum of squared deviations of each unit of the layout."""
    count = _count(tensors, layout)
    batches = compiled_batches(tensors, layout, measures=True)
    compiled = count.new_zeros(2, layout.units)
    for batch in batches:
        batch.measure(tensors, compiled)
    done = {index for batch in batches for index in batch.indices}
    present = (
        index
        for index, (pieces, tensor) in enumerate(zip(layout.slices, tensors, strict=True))
        if pieces and tensor is not None and tensor.numel()
    )
    if done.issuperset(present):
        return Moments(count, compiled[0], compiled[1], layout)
    means: list[Tensor] = []
    m2s: list[Tensor] = []
    for index, (pieces, tensor) in enumerate(zip(layout.slices, tensors, strict=True)):
        for piece in pieces:
            if tensor is None or tensor.numel() == 0 or index in done:
                mean, m2 = compiled[:, piece.first_unit : piece.first_unit + piece.units]
            else:
                mean, m2 = reference.moments(piece.view_of(_real(tensor)), piece.unit_dims)
            means.append(mean.to(layout.device).reshape(piece.units))
            m2s.append(m2.to(layout.device).reshape(piece.units))
    return Moments(count, torch.cat(means), torch.cat(m2s), layout)


def _count(tensors: Sequence[Tensor | None], layout: Layout) -> Tensor:
    """Elements of each unit; 0 where the gradient is missing."""
    count = layout.count.clone()
    for entry, tensor in zip(layout.entries, tensors, strict=True):
        if tensor is None and entry.units:
            units = entry.unit_range
            count[units.start : units.stop] = 0
    return count


def compiled_batches(
    tensors: Sequence[Tensor | None],
    layout: Layout,
    *,
    measures: bool,
    everything: bool = False,
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
        cache=layout.cache if kept else {},
    )


def apply_affine_(
    tensors: Sequence[Tensor | None],
    affine: Affine,
    layout: Layout,
    *,
    near: Sequence[bool] | None = None,
) -> None:
    """Write ``(g - center) * scale`` to each measured tensor.

    ``near`` says of each unit whether `reference.apply_` may take it in one operation.
    """
    batches = compiled_batches(tensors, layout, measures=False)
    for batch in batches:
        batch.apply_affine_(tensors, Coefficients(affine.center, affine.scale))
        _mark_written(batch, tensors)
    done = {index for batch in batches for index in batch.indices}
    split: dict[tuple[torch.device, torch.dtype], tuple[tuple[Tensor, ...], Tensor, Tensor]] = {}
    for index, (pieces, tensor) in enumerate(zip(layout.slices, tensors, strict=True)):
        if index in done or tensor is None or tensor.numel() == 0:
            continue
        for piece in pieces:
            view = piece.view_of(_real(tensor))
            key = (view.device, view.dtype)
            if key not in split:
                center, scale = affine.center.to(key[0]), affine.scale.to(key[0])
                centers, scales = reference.split(center, scale, key[1])
                split[key] = centers, scales, (-center * scale).to(scales.dtype)
            centers, scales, offsets = split[key]
            one_pass = near is not None and not piece.unit_dims and near[piece.first_unit]
            reference.apply_(
                view,
                tuple(piece.broadcast(center) for center in centers),
                piece.broadcast(scales),
                piece.broadcast(offsets) if one_pass else None,
            )


def _near(decision: Decision) -> list[bool] | None:
    """A flag for each unit that `reference.apply_` may take in one operation; None: not known."""
    affine, after = decision.affine, decision.after
    on_cpu = after.m2.device.type == "cpu" and not torch.is_grad_enabled()
    if not on_cpu or is_traced():
        return None
    close = (affine.center * affine.scale).square() * after.count <= after.m2
    near: list[bool] = (close & (affine.scale < torch.finfo(torch.float32).max)).tolist()
    return near


def _normalize_compiled_(
    tensors: Sequence[Tensor | None], stage: Layout, z_score: ZScore, context: StepContext
) -> bool:
    """Measure, decide and apply tensor by tensor, each while it is in cache.

    Returns
    -------
    bool
        False, and nothing done, if the kernels do not serve all of them.
    """
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
    readings: list[Readings] = []
    chosen = [
        tensor if entry.selected and tensor is not None and tensor.numel() else None
        for entry, tensor in zip(stage.entries, tensors, strict=True)
    ]
    done: set[int] = set()
    if isinstance(form, Clamp):
        for batch in compiled_batches(chosen, stage, measures=False, everything=True):
            if not batch.clamps:
                continue
            read = batch.clamp_(chosen, form.bound)
            _mark_written(batch, chosen)
            done.update(batch.indices)
            acted = read[:, 4] > 0
            if clipped is not None:
                clipped[_index(batch, stage, clipped.device)] |= acted.to(clipped.device)
            if receipt is not None:
                served = [chosen[index] for index in batch.indices]
                sizes = [gradient.numel() for gradient in served if gradient is not None]
                readings.append(receipt.readings(batch.indices, sizes, read[:, :4], acted))
    for index, gradient in enumerate(chosen):
        if gradient is None or index in done:
            continue
        if receipt is None and clipped is None:
            transform.apply_(_real(gradient))
            continue
        before = None if receipt is None and form is not None else gradient.clone()
        changed = _apply_elementwise_(transform, form, _real(gradient), before)
        acts = changed if transform.is_clip else torch.zeros_like(changed)
        if clipped is not None:
            clipped[index] |= acts.to(clipped.device)
        if receipt is not None and before is not None:
            readings.append(receipt.read(index, before, gradient, acts))
    return readings


def _index(batch: KernelBatch, stage: Layout, device: torch.device) -> Tensor:
    """The places of a batch's tensors as an index on a device, to which it is copied once."""
    key = ("index", tuple(batch.indices), device)
    if key not in stage.cache:
        stage.cache[key] = torch.tensor(batch.indices, device=device)
    index: Tensor = stage.cache[key]
    return index


def _apply_elementwise_(
    transform: Transform, form: FusedForm | None, gradient: Tensor, before: Tensor | None
) -> Tensor:
    """Apply the transform to a real gradient; whether any entry was changed."""
    if isinstance(form, Clamp):
        # The largest and the smallest, which is one reading.
        low, high = gradient.detach().aminmax()
        transform.apply_(gradient)
        return (high > form.bound) | (low < -form.bound)
    transform.apply_(gradient)
    assert before is not None
    real = _real(before)
    return ~((gradient == real) | (gradient.isnan() & real.isnan())).all()


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
    for tensor in tensors:
        if tensor is not None:
            tensor.mul_(inv_scale.to(tensor.device))
