"""Measure, decide, apply: the three steps that every use of a transform is made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from znorm import kernels
from znorm.layers import Layer
from znorm.layout import Decision, Layout
from znorm.moments import Affine, Moments
from znorm.rows import Row
from znorm.transforms.clip import ClipValue
from znorm.transforms.composition import Transform, chain, links
from znorm.transforms.zscore import ZNorm

if TYPE_CHECKING:
    from znorm.receipts import Receipt

__all__ = ["apply_", "decide", "measure", "scale_", "transform_", "z_score_"]


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
    dtype = layout.count.dtype
    means: list[Tensor] = []
    m2s: list[Tensor] = []
    missing: list[Layer] = []
    for row, gradient in zip(layout.rows, given, strict=True):
        for layer in row.layers:
            if gradient is None:
                missing.append(layer)
            if gradient is None or gradient.numel() == 0:
                mean = m2 = torch.zeros(layer.units, dtype=dtype, device=layout.device)
            else:
                kernel = kernels.choose(gradient)
                mean, m2 = kernel.moments(layer.of(_real(gradient)), layer.unit_dims)
            means.append(mean.to(layout.device).reshape(layer.units))
            m2s.append(m2.to(layout.device).reshape(layer.units))
    if not means:
        empty = layout.count.new_zeros(0)
        return Moments(empty, empty.clone(), empty.clone(), layout)
    count = layout.count.clone()
    for layer in missing:
        count[layer.first : layer.first + layer.units] = 0
    return Moments(count, torch.cat(means), torch.cat(m2s), layout)


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
    _apply_(_aligned(gradients, layout.rows), affine, layout)


def _apply_(given: Sequence[Tensor | None], affine: Affine, layout: Layout) -> None:
    split: dict[tuple[torch.device, torch.dtype], tuple[tuple[Tensor, ...], Tensor]] = {}
    for row, gradient in zip(layout.rows, given, strict=True):
        if gradient is None or gradient.numel() == 0:
            continue
        for layer in row.layers:
            kernel = kernels.choose(gradient)
            part = layer.of(_real(gradient))
            key = (part.device, part.dtype)
            if key not in split:
                center, scale = affine.center.to(key[0]), affine.scale.to(key[0])
                split[key] = kernel.split(center, scale, key[1])
            centers, scales = split[key]
            kernel.apply_(
                part, tuple(layer.spread(center) for center in centers), layer.spread(scales)
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
        decision = _stage_(given, layout, factor, parameters)
        if receipt is not None:
            receipt.record(decision, skipped)
        return
    # What clamping does to norms cannot be told from moments: it is read off the gradients.
    before = receipt.keep(given, factor) if receipt is not None else []
    clipped: list[tuple[int, Tensor]] = []
    for stage in layout.stages:
        if stage.elementwise:
            clipped += _clamp_(given, stage, factor)
        else:
            decision = _stage_(given, stage, factor, parameters)
            if decision.clipped is not None:
                clipped += stage.by_row(decision.clipped)
        factor = None
    if receipt is not None:
        receipt.compare(before, given, clipped, skipped)


def _stage_(
    given: Sequence[Tensor | None],
    stage: Layout,
    factor: Tensor | None,
    parameters: Sequence[Tensor | None],
) -> Decision:
    weights = _measure(_aligned(parameters, stage.rows), stage) if stage.relative else None
    decision = stage.decide(_measure(given, stage), factor, weights)
    if factor is not None:
        unmeasured = zip(given, stage.rows, strict=True)
        scale_((gradient for gradient, row in unmeasured if not row.units), factor)
    _apply_(given, decision.affine, stage)
    return decision


def _clamp_(
    given: Sequence[Tensor | None], stage: Layout, factor: Tensor | None
) -> list[tuple[int, Tensor]]:
    """Clamp each gradient; says of each row whether that did anything."""
    link = stage.links[0]
    assert isinstance(link, ClipValue)
    if factor is not None:
        scale_(given, factor)
    acted: list[tuple[int, Tensor]] = []
    for number, (row, gradient) in enumerate(zip(stage.rows, given, strict=True)):
        if gradient is not None and row.selected and gradient.numel():
            part = _real(gradient)
            acted.append((number, part.detach().abs().amax() > link.threshold))
            link.clamp_(part)
    return acted


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
