"""Measure, decide, apply: the three steps that every use of a transform is made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from znorm import kernels
from znorm.kernels import reference
from znorm.layout import Decision, Layout
from znorm.moments import Affine, Moments
from znorm.rows import Row, is_dtensor, is_plain
from znorm.transforms.clip import ClipValue
from znorm.transforms.composition import Transform, chain, links
from znorm.transforms.zscore import ZNorm

if TYPE_CHECKING:
    from znorm.receipts import Look, Receipt

__all__ = [
    "apply_",
    "check",
    "compiled_parts",
    "decide",
    "decide_stage",
    "measure",
    "scale_",
    "transform_",
    "z_score_",
]


@torch.no_grad()
def measure(gradients: Iterable[Tensor | None], layout: Layout) -> Moments:
    """Read each gradient once: count, mean and sum of squared deviations of each unit.

    Parameters
    ----------
    gradients : iterable of Tensor or None
        In the order of the layout's parameters; None for a missing one, which counts 0.
    layout : Layout

    Returns
    -------
    Moments
        One entry a unit, in layout order; float64 where the device has it. Nothing waits for the
        device.

    Raises
    ------
    ValueError
        If there are not as many gradients as parameters, or one has another shape, or is sparse.

    Examples
    --------
    >>> import torch, znorm
    >>> net = torch.nn.Linear(2, 1, bias=False)
    >>> layout = znorm.Layout(net.named_parameters(), znorm.ZNorm(), model=net)
    >>> moments = znorm.measure([torch.tensor([[1.0, 3.0]])], layout)
    >>> moments.mean
    tensor([2.], dtype=torch.float64)
    """
    _check("layout", layout, Layout, "znorm.Layout(parameters, transform)")
    return _measure(_aligned(gradients, layout.rows), layout)


def _measure(given: Sequence[Tensor | None], layout: Layout) -> Moments:
    count = _count(given, layout)
    parts = compiled_parts(given, layout, measures=True)
    held = count.new_zeros(2, layout.units)
    for part in parts:
        part.measure(given, held)
    done = {number for part in parts for number in part.numbers}
    means: list[Tensor] = []
    m2s: list[Tensor] = []
    some = False
    for number, (row, gradient) in enumerate(zip(layout.rows, given, strict=True)):
        for layer in row.layers:
            if gradient is None or gradient.numel() == 0 or number in done:
                mean, m2 = held[:, layer.first : layer.first + layer.units]
            else:
                some = True
                part_ = layer.of(_real(gradient))
                mean, m2 = reference.moments(part_, layer.unit_dims)
            means.append(mean.to(layout.device).reshape(layer.units))
            m2s.append(m2.to(layout.device).reshape(layer.units))
    if not some:
        return Moments(count, held[0], held[1], layout)
    return Moments(count, torch.cat(means), torch.cat(m2s), layout)


def _count(given: Sequence[Tensor | None], layout: Layout) -> Tensor:
    """Elements of each unit; 0 where the gradient is missing."""
    count = layout.count.clone()
    for row, gradient in zip(layout.rows, given, strict=True):
        if gradient is None and row.units:
            count[row.first : row.first + row.units] = 0
    return count


def compiled_parts(
    tensors: Sequence[Tensor | None],
    layout: Layout,
    *,
    measures: bool,
    everything: bool = False,
    kept: bool = True,
) -> list[Any]:
    """The rows that compiled kernels serve: those that are measured, or everything.

    Their plans are kept with the layout, or are the caller's own.
    """
    if torch.is_grad_enabled():
        return []
    parts: list[Any] = []
    for kind in {tensor.device.type for tensor in tensors if tensor is not None}:
        module = kernels.compiled(kind)
        if module is not None:
            parts += module.parts_of(
                layout.rows,
                tensors,
                measures=measures,
                everything=everything,
                cache=layout.plans if kept else {},
            )
    return parts


def _written(part: Any, tensors: Sequence[Tensor | None]) -> None:
    """Tell autograd that kernels have changed a part's tensors, which it cannot see.

    A graph that has kept one of them then raises, as after torch's own operations.
    """
    chosen = (tensors[number] for number in part.numbers)
    torch.autograd.graph.increment_version([t for t in chosen if t is not None])


def _real(tensor: Tensor) -> Tensor:
    """Complex numbers as two real ones each, as torch's own optimizers take them."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


@torch.no_grad()
def decide(
    transform: Transform | None, moments: Moments, parameters: Moments | None = None
) -> Affine:
    """The one affine map that a transform makes of these moments.

    A pure function: no gradient is read. Moments may have been merged or reduced before.

    Parameters
    ----------
    transform : transform or None
        The one that the moments' layout was made for.
    moments : Moments
        Of :func:`measure`.
    parameters : Moments, optional
        Of the parameters themselves, measured with the same layout; :class:`~znorm.AdaptiveClip`
        needs them.

    Raises
    ------
    ValueError
        If the transform is not the layout's, or holds a :class:`~znorm.ClipValue`, after which
        gradients must be read again; if it needs the parameters' moments.
    """
    _check("moments", moments, Moments, "those that znorm.measure returns")
    links(transform)  # raises for what is no transform
    layout = moments.layout
    if parameters is not None:
        _check("parameters", parameters, Moments, "those that znorm.measure returns")
    if parameters is not None and parameters.count.shape != moments.count.shape:
        raise ValueError(
            f"parameters: found {parameters.count.numel()} units for the {moments.count.numel()} "
            "of the moments; measure both with the same layout"
        )
    if layout is None:
        raise ValueError("moments: they have no layout; use those that znorm.measure returns")
    wanted = chain() if transform is None else transform
    if wanted != layout.transform:
        raise ValueError(
            f"transform: {wanted!r} is not the {layout.transform!r} that the layout of these "
            "moments was made for; make a layout for it"
        )
    if any(isinstance(link, ClipValue) for link in layout.links):
        raise ValueError(
            f"transform: {transform!r} holds ClipValue, which is elementwise: what follows it "
            "needs a second reading; use znorm.attach, or decide the links before and after it "
            "apart"
        )
    if parameters is None and layout.relative:
        raise ValueError(
            f"transform: {transform!r} holds AdaptiveClip, which compares gradients with weights; "
            "give their moments too: parameters=znorm.measure(model.parameters(), layout)"
        )
    return layout.decide(moments, parameters=parameters).affine


@torch.no_grad()
def apply_(gradients: Iterable[Tensor | None], affine: Affine) -> None:
    """Apply ``(g - center) * scale`` in place, in float32 or wider, rounded once.

    Tensors that no link acts on are not written.

    Parameters
    ----------
    gradients : iterable of Tensor or None
        In the order of the layout's parameters.
    affine : Affine
        Of :func:`decide`.

    Raises
    ------
    ValueError
        If the gradients do not fit the affine map's layout.
    """
    _check("affine", affine, Affine, "that of znorm.decide")
    layout = affine.layout
    if layout is None:
        raise ValueError("affine: it has no layout; use the one that znorm.decide returns")
    given = _aligned(gradients, layout.rows)
    _check_each_once(given, layout)
    _apply_(given, affine, layout)


def _check_each_once(given: Sequence[Tensor | None], layout: Layout) -> None:
    """Raise for a tensor that is there twice: it would be transformed twice."""
    names: dict[Tensor, str] = {}
    for row, gradient in zip(layout.rows, given, strict=True):
        if gradient is not None and names.setdefault(gradient, row.name) != row.name:
            raise ValueError(
                f"{row.name}: its gradient is the very tensor of {names[gradient]}; give each once"
            )


def _apply_(
    given: Sequence[Tensor | None],
    affine: Affine,
    layout: Layout,
    *,
    near: Sequence[bool] | None = None,
) -> None:
    parts = compiled_parts(given, layout, measures=False)
    for part in parts:
        part.apply_(given, affine.center, affine.scale)
        _written(part, given)
    done = {number for part in parts for number in part.numbers}
    split: dict[tuple[torch.device, torch.dtype], tuple[tuple[Tensor, ...], Tensor, Tensor]] = {}
    for number, (row, gradient) in enumerate(zip(layout.rows, given, strict=True)):
        if number in done or gradient is None or gradient.numel() == 0:
            continue
        for layer in row.layers:
            slice_ = layer.of(_real(gradient))
            key = (slice_.device, slice_.dtype)
            if key not in split:
                center, scale = affine.center.to(key[0]), affine.scale.to(key[0])
                centers, scales = reference.split(center, scale, key[1])
                split[key] = centers, scales, (-center * scale).to(scales.dtype)
            centers, scales, offsets = split[key]
            one_pass = near is not None and not layer.unit_dims and near[layer.first]
            reference.apply_(
                slice_,
                tuple(layer.spread(center) for center in centers),
                layer.spread(scales),
                layer.spread(offsets) if one_pass else None,
            )


def transform_(
    gradients: Sequence[Tensor | None],
    layout: Layout,
    *,
    factor: Tensor | None = None,
    parameters: Sequence[Tensor | None] = (),
    receipt: Receipt | None = None,
    skipped: Tensor | None = None,
) -> None:
    """Transform gradients in place as the layout's transform says: all stages of it.

    Parameters
    ----------
    gradients : sequence of Tensor or None
    layout : Layout
    factor : Tensor of one element, optional
        What gradients are multiplied by before all else, the inverse of a loss scale: the first
        link of the first stage, so that epsilons and thresholds need no rule of their own and
        half-precision gradients are rounded once.
    parameters : sequence of Tensor or None
        Where the layout is relative to them; None where the gradient is.
    receipt : Receipt, optional
        What is done is written down in it, unless the step is ``skipped``.
    skipped : Tensor of one element, optional
        Not 0 if the optimizer will skip this step.
    """
    given = _aligned(gradients, layout.rows)
    if layout.observes:
        if receipt is not None:
            receipt.record(layout.decide(_measure(given, layout), factor), skipped)
        return
    if len(layout.stages) == 1 and not layout.elementwise:
        decision = _stage_(given, layout, factor, parameters, receipt, skipped)
        if receipt is not None and decision is not None:
            receipt.record(decision, skipped)
        return
    looks: list[Look] = []
    if layout.elementwise:
        _clamp_(given, layout, factor, receipt, looks)
        if receipt is not None:
            receipt.compare(looks, None, skipped)
        return
    # What clamping does to norms cannot be told from moments: it is read off the gradients.
    rows = [
        (number, gradient)
        for number, (row, gradient) in enumerate(zip(layout.rows, given, strict=True))
        if row.selected and gradient is not None and gradient.numel()
    ]
    before = [gradient.clone() for _, gradient in rows] if receipt is not None else []
    clipped: dict[int, Tensor] = {}
    scale = factor
    for stage in layout.stages:
        if stage.elementwise:
            acted = _clamp_(given, stage, scale, None, looks)
        else:
            decision = _stage_(given, stage, scale, parameters)
            clipped_ = None if decision is None else decision.clipped
            acted = {} if clipped_ is None else stage.by_row(clipped_)
        for number, flag in acted.items():
            clipped[number] = clipped[number] | flag if number in clipped else flag
        scale = None
    if receipt is not None:
        for (number, gradient), kept in zip(rows, before, strict=True):
            flag = clipped.get(number, torch.zeros((), dtype=torch.bool, device=gradient.device))
            looks.append(receipt.look(number, kept, gradient, flag))
        receipt.compare(looks, factor, skipped)


def _stage_(
    given: Sequence[Tensor | None],
    stage: Layout,
    factor: Tensor | None,
    parameters: Sequence[Tensor | None],
    receipt: Receipt | None = None,
    skipped: Tensor | None = None,
) -> Decision | None:
    """Transform by one stage; None if kernels did it all, with an entry in the receipt."""
    if factor is not None:
        unmeasured = zip(given, stage.rows, strict=True)
        scale_((gradient for gradient, row in unmeasured if not row.units), factor)
    if stage.z_score is not None and _z_score_compiled_(given, stage, factor, receipt, skipped):
        return None
    decision = decide_stage(given, stage, factor, parameters)
    _apply_(given, decision.affine, stage, near=_near(decision))
    return decision


def _near(decision: Decision) -> list[bool] | None:
    """Of each unit whether `reference.apply_` may take it in one pass; None: not known."""
    affine, after = decision.affine, decision.after
    looks = after.m2.device.type == "cpu" and not torch.is_grad_enabled()
    if not looks or reference.is_traced():
        return None
    close = (affine.center * affine.scale).square() * after.count <= after.m2
    near: list[bool] = (close & (affine.scale < torch.finfo(torch.float32).max)).tolist()
    return near


def decide_stage(
    gradients: Sequence[Tensor | None],
    stage: Layout,
    factor: Tensor | None,
    parameters: Sequence[Tensor | None],
) -> Decision:
    """Measure what the layout's links need, and decide; nothing is written."""
    weights = None
    if stage.relative:
        present = [
            None if gradient is None or parameter is None else parameter.detach()
            for parameter, gradient in zip(parameters, gradients, strict=True)
        ]
        for row, parameter, gradient in zip(stage.rows, present, gradients, strict=True):
            if parameter is None or gradient is None or not row.units or is_plain(parameter):
                continue
            if is_plain(gradient):
                raise TypeError(
                    f"{row.name}: {stage.transform!r} compares with weights, and those of "
                    f"{type(parameter).__name__} cannot be measured; leave it out by a rule of "
                    'select, such as ("NAME", False)'
                )
        weights = _measure(_aligned(present, stage.rows), stage)
    return stage.decide(_measure(gradients, stage), factor, weights)


def _z_score_compiled_(
    given: Sequence[Tensor | None],
    stage: Layout,
    factor: Tensor | None,
    receipt: Receipt | None,
    skipped: Tensor | None,
) -> bool:
    """Measure, decide and apply tensor by tensor, each while it is in cache.

    Returns
    -------
    bool
        False, and nothing done, if the kernels do not serve all of them.
    """
    parts = compiled_parts(given, stage, measures=True)
    if any(part.device != stage.device for part in parts):
        return False
    done = {number for part in parts for number in part.numbers}
    for number, (row, gradient) in enumerate(zip(stage.rows, given, strict=True)):
        served = number in done and row.units == 1
        if row.units and not served and gradient is not None and gradient.numel():
            return False
    for part in parts:
        part.z_score_(given, stage.z_score, factor, receipt, skipped)
        _written(part, given)
    return True


def _clamp_(
    given: Sequence[Tensor | None],
    stage: Layout,
    factor: Tensor | None,
    receipt: Receipt | None,
    looks: list[Look],
) -> dict[int, Tensor]:
    """Clamp each gradient, and say of each row whether that did anything."""
    link = stage.links[0]
    assert isinstance(link, ClipValue)
    if factor is not None:
        scale_(given, factor)
    acted: dict[int, Tensor] = {}
    chosen = [
        gradient if row.selected and gradient is not None and gradient.numel() else None
        for row, gradient in zip(stage.rows, given, strict=True)
    ]
    for part in compiled_parts(chosen, stage, measures=False, everything=True):
        if not part.clamps:
            continue
        read = part.clamp(chosen, link.threshold)
        _written(part, chosen)
        for number, found, changed in zip(
            part.numbers, read[:, :4].unbind(), (read[:, 4] > 0).unbind(), strict=True
        ):
            gradient = chosen[number]
            assert gradient is not None
            acted[number] = changed
            if receipt is not None:
                looks.append(receipt.seen(number, gradient.numel(), found, changed))
    for number, gradient in enumerate(chosen):
        if gradient is None or number in acted:
            continue
        real = _real(gradient)
        # The largest and the smallest, which is one reading.
        low, high = real.detach().aminmax()
        acted[number] = (high > link.threshold) | (low < -link.threshold)
        before = None if receipt is None else gradient.clone()
        link.clamp_(real)
        if receipt is not None and before is not None:
            looks.append(receipt.look(number, before, gradient, acted[number]))
    return acted


def check(gradients: Sequence[Tensor | None], layout: Layout) -> None:
    """Raise for a gradient that the layout's links cannot transform; it is named."""
    _aligned(gradients, layout.rows)


def scale_(gradients: Iterable[Tensor | None], factor: Tensor) -> None:
    """Multiply gradients by the inverse of a loss scale, in place."""
    for gradient in gradients:
        if gradient is not None:
            gradient.mul_(factor.to(gradient.device))


@torch.no_grad()
def z_score_(gradients: Iterable[Tensor | None], eps: float = 1e-10) -> None:
    """Replace each tensor by its z-score, in place, each tensor whole.

    Parameters
    ----------
    gradients : iterable of Tensor or None
        Any floating-point dtypes and shapes, scalars and vectors too; None is passed over. A
        tensor of one element is left as it is.
    eps : float, default 1e-10
        Added to the standard deviation.

    Raises
    ------
    TypeError, ValueError
        If ``gradients`` is not a list of tensors, or one is sparse.

    Examples
    --------
    >>> import torch, znorm
    >>> g = torch.tensor([1.0, 2.0, 3.0])
    >>> znorm.z_score_([g])
    >>> g
    tensor([-1.2247,  0.0000,  1.2247])
    """
    if isinstance(gradients, Tensor):
        raise TypeError("z_score_: expected a list of tensors, found one; put it in a list")
    present = [gradient for gradient in gradients if gradient is not None]
    seen: dict[int, int] = {}
    for position, gradient in enumerate(present):
        if not isinstance(gradient, Tensor):
            raise TypeError(
                f"gradients: entry {position} must be a tensor, found {type(gradient).__name__}"
            )
        if isinstance(gradient, nn.Parameter):
            raise TypeError(
                f"gradients: entry {position} is a parameter, whose weights would be changed; give "
                "gradients: [p.grad for p in model.parameters()]"
            )
        if not gradient.is_floating_point():
            raise TypeError(
                f"gradients: entry {position} is {gradient.dtype}; only floating point has a "
                "z-score"
            )
        if seen.setdefault(id(gradient), position) != position:
            raise ValueError(
                f"gradients: entry {position} is the tensor of entry {seen[id(gradient)]} again; "
                "give each once"
            )
    transform_(present, Layout(present, ZNorm(eps=eps, select="all")))


def _check(name: str, value: object, kind: type, wanted: str) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{name}: expected {wanted}, found {type(value).__name__}")


def _aligned(gradients: Iterable[Tensor | None], rows: Sequence[Row]) -> list[Tensor | None]:
    """The gradients as a list, checked against the rows."""
    given = list(gradients)
    if len(given) != len(rows):
        raise ValueError(
            f"gradients: found {len(given)} for the {len(rows)} parameters of the layout; give one "
            "for each, in the same order, None where one is missing"
        )
    for row, gradient in zip(rows, given, strict=True):
        if gradient is None or not row.selected:
            continue
        if not isinstance(gradient, Tensor):
            raise TypeError(
                f"{row.name}: its gradient must be a tensor, found {type(gradient).__name__}"
            )
        if not (gradient.is_floating_point() or gradient.is_complex()):
            raise TypeError(
                f"{row.name}: its gradient is {gradient.dtype}; only floating point and complex "
                "are transformed"
            )
        if type(gradient) is not Tensor and is_dtensor(gradient):
            raise TypeError(
                f"{row.name}: its gradient is sharded (DTensor), of which this process holds a "
                "part; sharded tensors are not supported yet"
            )
        if gradient.layout != torch.strided:
            raise ValueError(
                f"{row.name}: its gradient is sparse ({gradient.layout}), where each absent entry "
                "would get a value; make it dense (sparse=False), or leave it out by a rule of "
                'select, such as ("NAME", False)'
            )
        if gradient.device.type == "meta":
            raise ValueError(
                f"{row.name}: its gradient is on the meta device and holds no data; "
                "materialize the model first"
            )
        if tuple(gradient.shape) != row.shape:
            raise ValueError(
                f"{row.name}: its gradient has the shape {tuple(gradient.shape)}, the layout "
                f"{row.shape}; give the gradients in the order of the layout"
            )
    return given
