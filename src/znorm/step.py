"""Measure, decide, apply: the three steps that every use of a transform is made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from znorm import kernels
from znorm.layout import Layout, Row
from znorm.moments import Affine, Moments
from znorm.transforms.clip import ClipValue
from znorm.transforms.composition import Transform, chain, links
from znorm.transforms.zscore import ZNorm

__all__ = ["apply_", "decide", "measure", "transform_", "z_score_"]


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
    given = _aligned(gradients, layout.rows)
    dtype = layout.count.dtype
    means: list[Tensor] = []
    m2s: list[Tensor] = []
    missing: list[tuple[int, int]] = []
    for row, gradient in zip(layout.rows, given, strict=True):
        if not row.units:
            continue
        if gradient is None or gradient.numel() == 0:
            if gradient is None:
                missing.append((row.first, row.units))
            mean = m2 = torch.zeros(row.units, dtype=dtype, device=layout.device)
        else:
            kernel = kernels.choose(gradient)
            mean, m2 = kernel.moments(gradient.detach().view(row.view), row.unit_dims)
        means.append(mean.to(layout.device).reshape(row.units))
        m2s.append(m2.to(layout.device).reshape(row.units))
    if not means:
        empty = layout.count.new_zeros(0)
        return Moments(empty, empty.clone(), empty.clone(), layout)
    count = layout.count.clone()
    for first, units in missing:
        count[first : first + units] = 0
    return Moments(count, torch.cat(means), torch.cat(m2s), layout)


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
        Of the parameters themselves, measured with the same layout, for transforms whose threshold
        is relative to the weights. None of today's transforms looks at them.

    Raises
    ------
    ValueError
        If the transform is not the layout's, or holds a :class:`~znorm.ClipValue`, after which
        gradients must be read again.
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
    return layout.decide(moments)


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
    split: dict[tuple[torch.device, torch.dtype], tuple[tuple[Tensor, ...], Tensor]] = {}
    for row, gradient in zip(layout.rows, _aligned(gradients, layout.rows), strict=True):
        if gradient is None or not row.units or gradient.numel() == 0:
            continue
        kernel = kernels.choose(gradient)
        key = (gradient.device, gradient.dtype)
        if key not in split:
            center, scale = affine.center.to(key[0]), affine.scale.to(key[0])
            split[key] = kernel.split(center, scale, key[1])
        centers, scales = split[key]
        kernel.apply_(
            gradient.view(row.view),
            tuple(_broadcast(center, row) for center in centers),
            _broadcast(scales, row),
        )


def _broadcast(values: Tensor, row: Row) -> Tensor:
    """The row's entries, in the shape that meets its view."""
    if not row.unit_dims:
        return values[row.first]
    shape = [size if d in row.unit_dims else 1 for d, size in enumerate(row.view)]
    return values[row.first : row.first + row.units].view(shape)


@torch.no_grad()
def transform_(
    gradients: Sequence[Tensor | None], layout: Layout, factor: Tensor | None = None
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
    """
    for stage in layout.stages:
        measured = not stage.elementwise and stage.units > 0
        if factor is not None:
            for row, gradient in zip(stage.rows, gradients, strict=True):
                if gradient is not None and not (measured and row.units):
                    gradient.mul_(factor.to(gradient.device))
        if stage.elementwise:
            link = stage.links[0]
            assert isinstance(link, ClipValue)
            for row, gradient in zip(stage.rows, _aligned(gradients, stage.rows), strict=True):
                if gradient is not None and row.transformed:
                    link.clamp_(gradient)
        elif measured:
            apply_(gradients, stage.decide(measure(gradients, stage), factor))
        factor = None


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
    for position, gradient in enumerate(present):
        if not isinstance(gradient, Tensor):
            raise TypeError(
                f"gradients: entry {position} must be a tensor, found {type(gradient).__name__}"
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
        if gradient is None or not row.transformed:
            continue
        if not isinstance(gradient, Tensor):
            raise TypeError(
                f"{row.name}: its gradient must be a tensor, found {type(gradient).__name__}"
            )
        if not gradient.is_floating_point():
            raise TypeError(
                f"{row.name}: its gradient is {gradient.dtype}; only real floating point is "
                "transformed"
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
