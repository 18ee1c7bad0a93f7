"""Attach a transform to any torch optimizer: it then runs right before each step."""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from znorm.kernels.reference import statistics_dtype
from znorm.layout import Layout
from znorm.receipts import Receipt
from znorm.rows import Description
from znorm.selection import Origin, origins
from znorm.step import scale_, transform_
from znorm.transforms.composition import Transform
from znorm.transforms.observe import Observe

__all__ = ["Attachment", "attach", "attachment_of"]

# What marks an optimizer as attached: an instance attribute, so that it goes with the optimizer.
_MARK = "_znorm_attachment"


def attach(
    optimizer: Optimizer,
    transform: Transform | Sequence[Transform | None] | None,
    *,
    model: nn.Module | None = None,
) -> Attachment:
    """Make ``optimizer`` transform its gradients in place right before each step.

    It runs once a step, after accumulation, unscaling and clipping. With ``step(closure)`` it runs
    after the closure's backward, each time that the optimizer calls the closure. The optimizer's
    ``state_dict`` stays torch's own; ``copy.deepcopy`` and pickle keep the transform.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Any, in any variant.
    transform : transform, None, or a list of them
        Such as ``znorm.ZNorm()``. None observes: gradients are measured for the receipt and left
        alone. A list holds one for each parameter group.
    model : torch.nn.Module, optional
        Gives names to parameters, and tells normalizations, transposed convolutions and the packed
        weights of attention.

    Returns
    -------
    Attachment
        Keep it or not; the optimizer holds it.

    Raises
    ------
    TypeError, ValueError
        For anything that is not an optimizer, an optimizer attached already, a parameter that
        cannot be transformed, a rule that matches nothing.

    Notes
    -----
    Complex gradients are taken as torch's own optimizers take them: their real and imaginary parts
    are real entries, so that a complex number counts as two. With ``differentiable=True`` gradients
    are replaced, not written, and the transform is differentiated through. Under
    ``torch.compile(optimizer.step)`` the transform stays outside of what is compiled.

    Examples
    --------
    >>> import torch, znorm
    >>> net = torch.nn.Linear(4, 2)
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    >>> attachment = znorm.attach(optimizer, znorm.ZNorm(), model=net)
    >>> net(torch.randn(8, 4)).square().mean().backward()
    >>> optimizer.step()
    >>> attachment.detach()
    """
    if not isinstance(optimizer, Optimizer):
        hint = "; the model goes in model=" if isinstance(optimizer, nn.Module) else ""
        raise TypeError(
            f"optimizer: expected a torch.optim.Optimizer, found {type(optimizer).__name__}{hint}"
        )
    present = attachment_of(optimizer)
    if present is not None:
        raise ValueError(
            f"optimizer: {type(optimizer).__name__} has {present.transform!r} attached already; "
            "detach that first, or attach znorm.chain(first, second)"
        )
    known = {} if model is None else origins(model)
    if model is not None and not any(id(p) in known for p in _parameters(optimizer)):
        raise ValueError(
            "model: none of the optimizer's parameters belongs to it; pass the very model whose "
            "parameters the optimizer trains, not a copy"
        )
    if isinstance(transform, list | tuple):
        return Attachment(optimizer, tuple(transform), known)
    return Attachment(optimizer, cast(Transform | None, transform), known)


@dataclass
class _Part:
    """The parameters that share one layout: all of them, or those of a group."""

    parameters: list[Tensor]
    layout: Layout
    receipt: Receipt


class Attachment:
    """A transform at work in an optimizer; made by :func:`attach`."""

    def __init__(
        self,
        optimizer: Optimizer,
        transform: Transform | tuple[Transform | None, ...] | None,
        known: dict[int, Origin],
    ) -> None:
        self.transform = transform
        self._known = known
        # Weak: the optimizer holds the attachment, and a cycle would keep gradients alive.
        self._optimizer = weakref.ref(optimizer)
        self._parts: list[_Part] = []
        self._parts_of: list[Any] = []
        self._current()
        self.stepping = False
        # Outside of what torch.compile traces: torch breaks the graph at this very place, and
        # what is attached must add no frame, no guard and no recompilation of its own.
        self._handles = (
            optimizer.register_step_pre_hook(
                cast(Callable[..., Any], torch.compiler.disable(_before_step))
            ),
            optimizer.register_step_post_hook(torch.compiler.disable(_after_step)),
        )
        optimizer.__dict__[_MARK] = self
        # deepcopy and pickle ask the instance first. torch drops hooks from copies without a
        # word, so a copy is attached anew.
        optimizer.__dict__["__reduce_ex__"] = functools.partial(_reduce, self._optimizer)

    def _current(self) -> list[_Part]:
        """The layouts of the optimizer's parameters as they are now."""
        optimizer = self._live()
        groups = optimizer.param_groups
        identity = [(id(p), p.device, p.shape) for group in groups for p in group["params"]]
        if self._parts and identity == self._parts_of:
            return self._parts
        labels, found = _labels(optimizer, self._known)
        parts: list[_Part] = []
        earlier = {number: part.receipt for number, part in enumerate(self._parts)}
        start = 0
        for number, (held, transform) in enumerate(self._divided(groups)):
            end = start + len(held)
            layout = Layout(
                list(zip(labels[start:end], held, strict=True)),
                Observe() if transform is None else transform,
                origins=found[start:end],
            )
            parts.append(_Part(held, layout, Receipt(layout, earlier.get(number))))
            start = end
        self._parts, self._parts_of = parts, identity
        return parts

    def _divided(self, groups: list[dict[str, Any]]) -> list[tuple[list[Tensor], Transform | None]]:
        if not isinstance(self.transform, tuple):
            return [([p for group in groups for p in group["params"]], self.transform)]
        if len(groups) != len(self.transform):
            raise ValueError(
                f"transform: found {len(self.transform)} for {len(groups)} parameter groups; "
                "detach, and attach a list with one for each group, None where gradients are left "
                "alone"
            )
        return [
            (list(group["params"]), transform)
            for group, transform in zip(groups, self.transform, strict=True)
        ]

    def describe(self) -> Description:
        """What is transformed, and what is not and why: ``str()`` is the table, ``.rows`` dicts.

        Examples
        --------
        >>> import torch, znorm
        >>> net = torch.nn.Linear(4, 2)
        >>> optimizer = torch.optim.Adam(net.parameters())
        >>> print(znorm.attach(optimizer, znorm.ZNorm(), model=net).describe())
        name    shape   units  kernel     transformed
        weight  (2, 4)  1      reference  yes: ZNorm
        bias    (2,)    0      reference  no: one dimension
        """
        return Description(
            tuple(row for part in self._current() for row in part.layout.describe().rows)
        )

    def receipt(self) -> dict[str, dict[str, float]]:
        """What the transform did to each tensor that it acts on; waits for the device.

        Returns
        -------
        dict of str to dict
            By the names of :meth:`describe`, for tensors that have had a gradient. Means over the
            steps since attach: ``norm_before`` and ``norm_after`` (Euclidean), ``mean`` and ``std``
            of the entries before, ``cosine`` of the angle between the gradients before and after
            (0 where one of them is 0), ``clipped`` the share of steps in which a clip changed the
            tensor; and ``steps``, how many. A step that GradScaler skips is not counted.

        Notes
        -----
        It costs no reading of gradients, but for chains that hold :class:`~znorm.ClipValue`: those
        are copied and read twice more.

        Examples
        --------
        >>> import torch, znorm
        >>> w = torch.nn.Parameter(torch.zeros(2, 2))
        >>> optimizer = torch.optim.SGD([w], lr=0.1)
        >>> attachment = znorm.attach(optimizer, znorm.ClipNorm(1.0))
        >>> w.grad = torch.tensor([[0.0, 3.0], [4.0, 0.0]])
        >>> optimizer.step()
        >>> found = attachment.receipt()["group 0, parameter 0 (2, 2)"]
        >>> found["norm_before"], found["norm_after"], found["clipped"], found["steps"]
        (5.0, 1.0, 1.0, 1)
        """
        found: dict[str, dict[str, float]] = {}
        for part in self._parts:
            found.update(part.receipt.as_dict())
        return found

    def detach(self) -> None:
        """Take the transform out of the optimizer; a second call does nothing."""
        for handle in self._handles:
            handle.remove()
        optimizer = self._optimizer()
        if optimizer is not None and attachment_of(optimizer) is self:
            del optimizer.__dict__[_MARK]
            del optimizer.__dict__["__reduce_ex__"]

    def transform_gradients(self) -> None:
        """Transform each parameter's ``grad`` once, in place unless it is differentiated."""
        optimizer = self._live()
        differentiable = bool(optimizer.defaults.get("differentiable", False))
        parts = self._current()
        writes = any(part.layout.writes for part in parts)
        factor, skipped = _loss_scale(optimizer, take_over=writes)
        with torch.set_grad_enabled(differentiable):
            for part in parts:
                layout, unscale = part.layout, factor
                gradients = [parameter.grad for parameter in part.parameters]
                if writes and not layout.writes and factor is not None:
                    # What is taken over for one group is taken over for all.
                    scale_(gradients, factor)
                    unscale = None
                if not layout.links:
                    continue
                if differentiable:
                    gradients = [g if g is None else g.clone() for g in gradients]
                transform_(
                    gradients,
                    layout,
                    factor=unscale,
                    parameters=[
                        None if gradient is None else parameter.detach()
                        for parameter, gradient in zip(part.parameters, gradients, strict=True)
                    ],
                    receipt=part.receipt,
                    skipped=skipped,
                )
                if differentiable and layout.writes:
                    for parameter, gradient in zip(part.parameters, gradients, strict=True):
                        parameter.grad = gradient

    def _live(self) -> Optimizer:
        optimizer = self._optimizer()
        if optimizer is None:
            raise RuntimeError("attachment: its optimizer no longer exists")
        return optimizer

    def __repr__(self) -> str:
        return f"Attachment({self.transform!r})"


def attachment_of(optimizer: Optimizer) -> Attachment | None:
    """What is attached to an optimizer."""
    return cast("Attachment | None", optimizer.__dict__.get(_MARK))


def _before_step(
    optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    attachment = attachment_of(optimizer)
    if attachment is None or (attachment.stepping and _inside_another_step(optimizer)):
        return None
    attachment.stepping = True
    # This hook runs before the closure, when there is no gradient yet, or the last step's.
    closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
    if closure is None:
        attachment.transform_gradients()
        return None
    if _stepped_by_grad_scaler(optimizer):
        raise RuntimeError(
            "closure: GradScaler cannot unscale what a closure computes, so that the step would be "
            "taken on scaled gradients; call scaler.step(optimizer) without a closure"
        )

    @functools.wraps(closure)
    def transformed() -> Any:
        loss = closure()
        torch.compiler.disable(attachment.transform_gradients)()
        return loss

    if "closure" in kwargs:
        return args, {**kwargs, "closure": transformed}
    return (args[0], transformed, *args[2:]), kwargs


def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    attachment = attachment_of(optimizer)
    if attachment is not None:
        attachment.stepping = False


def _inside_another_step(optimizer: Optimizer) -> bool:
    """Whether this is the ``super().step()`` of a subclass, whose own hooks have run already.

    ``stepping`` alone does not tell: it stays set where a step was left by an exception.
    """
    steps = 0
    frame = sys._getframe()
    while frame is not None and steps < 2:
        # torch runs the hooks of a step in a function of this name around it.
        if frame.f_code.co_name == "wrapper" and frame.f_locals.get("self") is optimizer:
            steps += 1
        frame = cast(FrameType, frame.f_back)
    return steps == 2


def _loss_scale(optimizer: Optimizer, *, take_over: bool) -> tuple[Tensor | None, Tensor | None]:
    """What gradients are to be multiplied by, and whether the step will be skipped.

    GradScaler leaves gradients scaled for a fused step, whose kernel divides by the loss scale
    after this hook: of a z-score that would leave 1/65536. What is taken over is not done again by
    the kernel; ``found_inf`` stays in force, so that a step which overflowed is still skipped.
    """
    skipped = getattr(optimizer, "found_inf", None)
    scale = getattr(optimizer, "grad_scale", None)
    if scale is None:
        return None, skipped
    if take_over:
        cast(Any, optimizer).grad_scale = None
    factor: Tensor = scale.to(statistics_dtype(scale.device)).reciprocal()
    return factor, skipped


def _stepped_by_grad_scaler(optimizer: Optimizer) -> bool:
    """Whether an enabled GradScaler is taking this step."""
    frame = cast(FrameType | None, sys._getframe())
    while frame is not None:
        if frame.f_code is torch.amp.GradScaler.step.__code__:
            scaler = frame.f_locals["self"]
            return scaler.is_enabled() and frame.f_locals["optimizer"] is optimizer
        frame = frame.f_back
    return False


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _labels(optimizer: Optimizer, known: dict[int, Origin]) -> tuple[list[str], list[Origin]]:
    """What to call each parameter in messages, and what is known of it."""
    labels: list[str] = []
    found: list[Origin] = []
    for number, group in enumerate(optimizer.param_groups):
        names = group.get("param_names")
        for position, parameter in enumerate(group["params"]):
            origin = known.get(id(parameter))
            if origin is None:
                origin = Origin(names[position] if names else None)
            place = f"group {number}, parameter {position} {tuple(parameter.shape)}"
            labels.append(origin.name or place)
            found.append(origin)
    return labels, found


def _reduce(reference: weakref.ref[Optimizer], protocol: Any) -> tuple[Any, ...]:
    optimizer = reference()
    assert optimizer is not None
    attachment = attachment_of(optimizer)
    assert attachment is not None
    _, found = _labels(optimizer, attachment._known)
    state = cast(Any, optimizer).__getstate__()
    return _restore, (type(optimizer), state, attachment.transform, found)


def _restore(
    kind: type[Optimizer],
    state: Any,
    transform: Transform | tuple[Transform | None, ...] | None,
    found: list[Origin],
) -> Optimizer:
    optimizer = kind.__new__(kind)
    cast(Any, optimizer).__setstate__(state)
    known = {id(p): o for p, o in zip(_parameters(optimizer), found, strict=True)}
    Attachment(optimizer, transform, known)
    return optimizer
