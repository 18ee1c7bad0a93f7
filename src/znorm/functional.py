"""Measure, decide, apply: the three functions that every use of a transform is made of."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from znorm.engine import execute
from znorm.engine.decide import decide as decide_moments
from znorm.engine.validate import aligned, check_each_once
from znorm.layout import Layout
from znorm.moments import Affine, Moments
from znorm.transforms.base import Transform
from znorm.transforms.composition import chain, transforms_of
from znorm.transforms.zscore import ZNorm

__all__ = ["apply_", "decide", "measure", "z_score_"]


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
    return execute.measure(aligned(gradients, layout), layout)


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

    Returns
    -------
    Affine
        A center and a scale a unit, in layout order.

    Raises
    ------
    ValueError
        If the transform is not the layout's, or holds a :class:`~znorm.ClipValue`, after which
        gradients must be read again; if it needs the parameters' moments.

    Examples
    --------
    >>> import torch, znorm
    >>> g, transform = torch.tensor([[1.0, 3.0]]), znorm.ZNorm(eps=0)
    >>> layout = znorm.Layout([("w", g)], transform)
    >>> affine = znorm.decide(transform, znorm.measure([g], layout))
    >>> affine.center, affine.scale
    (tensor([2.], dtype=torch.float64), tensor([1.], dtype=torch.float64))
    """
    _check("moments", moments, Moments, "those that znorm.measure returns")
    transforms_of(transform)  # raises for what is no transform
    layout: Layout | None = moments.layout
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
    for one in layout.transforms:
        kind = type(one).__name__
        if one.elementwise:
            raise ValueError(
                f"transform: {transform!r} holds {kind}, which is elementwise: what follows it "
                "needs a second reading; use znorm.attach, or decide what comes before and after "
                "it apart"
            )
        if one.uses_parameters and parameters is None:
            raise ValueError(
                f"transform: {transform!r} holds {kind}, which compares gradients with weights; "
                "give their moments too: parameters=znorm.measure(model.parameters(), layout)"
            )
    return decide_moments(layout, moments, parameters=parameters).affine


@torch.no_grad()
def apply_(gradients: Iterable[Tensor | None], affine: Affine) -> None:
    """Apply ``(g - center) * scale`` in place, in float32 or wider, rounded once.

    Tensors that no transform acts on are not written.

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

    Examples
    --------
    >>> import torch, znorm
    >>> g, transform = torch.tensor([[1.0, 3.0]]), znorm.ZNorm(eps=0)
    >>> layout = znorm.Layout([("w", g)], transform)
    >>> znorm.apply_([g], znorm.decide(transform, znorm.measure([g], layout)))
    >>> g
    tensor([[-1.,  1.]])
    """
    _check("affine", affine, Affine, "that of znorm.decide")
    layout: Layout | None = affine.layout
    if layout is None:
        raise ValueError("affine: it has no layout; use the one that znorm.decide returns")
    tensors = aligned(gradients, layout)
    check_each_once(tensors, layout)
    execute.apply_affine_(tensors, affine, layout)


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
    execute.transform_(present, Layout(present, ZNorm(eps=eps, select="all")))


def _check(name: str, value: object, kind: type, wanted: str) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{name}: expected {wanted}, found {type(value).__name__}")
