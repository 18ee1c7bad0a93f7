"""Attach a transform to any torch optimizer: it then runs right before each step."""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from znorm.kernels.reference import statistics_dtype
from znorm.layout import Description, Layout
from znorm.selection import Origin, origins
from znorm.step import transform_
from znorm.transforms.composition import Transform

__all__ = ["Attachment", "attach", "attachment_of"]

# What marks an optimizer as attached: an instance attribute, so that it goes with the optimizer.
_MARK = "_znorm_attachment"


def attach(
    optimizer: Optimizer, transform: Transform | None, *, model: nn.Module | None = None
) -> Attachment:
    """Make ``optimizer`` transform its gradients in place right before each step.

    It runs once a step, after accumulation, unscaling and clipping. With ``step(closure)`` it runs
    after the closure's backward, each time that the optimizer calls the closure. The optimizer's
    ``state_dict`` stays torch's own; ``copy.deepcopy`` and pickle keep the transform.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Any, in any variant.
    transform : transform or None
        Such as ``znorm.ZNorm()``; None leaves gradients alone.
    model : torch.nn.Module, optional
        Gives names to parameters, and tells normalizations and transposed convolutions.

    Returns
    -------
    Attachment
        Keep it or not; the optimizer holds it.

    Raises
    ------
    TypeError, ValueError
        For anything that is not an optimizer, an optimizer attached already, a parameter that
        cannot be transformed, a rule that matches nothing.

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
    if present is not None and present.transform is None:
        present.detach()  # it did nothing
    elif present is not None:
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
    return Attachment(optimizer, transform, known)


class Attachment:
    """A transform at work in an optimizer; made by :func:`attach`."""

    def __init__(
        self, optimizer: Optimizer, transform: Transform | None, known: dict[int, Origin]
    ) -> None:
        self.transform = transform
        self._known = known
        # Weak: the optimizer holds the attachment, and a cycle would keep gradients alive.
        self._optimizer = weakref.ref(optimizer)
        self._layout: Layout | None = None
        self._layout_of: list[Any] = []
        self.layout()
        self.stepping = False
        self._handles = (
            optimizer.register_step_pre_hook(cast(Callable[..., Any], _before_step)),
            optimizer.register_step_post_hook(_after_step),
        )
        optimizer.__dict__[_MARK] = self
        # deepcopy and pickle ask the instance first. torch drops hooks from copies without a
        # word, so a copy is attached anew.
        optimizer.__dict__["__reduce_ex__"] = functools.partial(_reduce, self._optimizer)

    def layout(self) -> Layout:
        """The layout of the optimizer's parameters as they are now."""
        optimizer = self._live()
        parameters = _parameters(optimizer)
        identity = [(id(p), p.device, p.shape) for p in parameters]
        if self._layout is None or identity != self._layout_of:
            labels, found = _labels(optimizer, self._known)
            named = list(zip(labels, parameters, strict=True))
            self._layout = Layout(named, self.transform, origins=found)
            self._layout_of = identity
        return self._layout

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
        return self.layout().describe()

    def detach(self) -> None:
        """Take the transform out of the optimizer; a second call does nothing."""
        for handle in self._handles:
            handle.remove()
        optimizer = self._optimizer()
        if optimizer is not None and attachment_of(optimizer) is self:
            del optimizer.__dict__[_MARK]
            del optimizer.__dict__["__reduce_ex__"]

    @torch.no_grad()
    def transform_gradients(self) -> None:
        """Transform each parameter's ``grad`` in place, once."""
        layout = self.layout()
        if not layout.links:
            return
        optimizer = self._live()
        gradients = [parameter.grad for parameter in _parameters(optimizer)]
        transform_(gradients, layout, _take_over_unscaling(optimizer))

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

    @functools.wraps(closure)
    def transformed() -> Any:
        loss = closure()
        attachment.transform_gradients()
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


def _take_over_unscaling(optimizer: Optimizer) -> Tensor | None:
    """What gradients are to be multiplied by that GradScaler leaves scaled for a fused step.

    The fused kernel divides by the loss scale after this hook: of a z-score that would leave
    1/65536. ``found_inf`` stays in force, so that a step which overflowed is still skipped.
    """
    scale = getattr(optimizer, "grad_scale", None)
    if scale is None:
        return None
    cast(Any, optimizer).grad_scale = None
    factor: Tensor = scale.to(statistics_dtype(scale.device)).reciprocal()
    return factor


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
    kind: type[Optimizer], state: Any, transform: Transform | None, found: list[Origin]
) -> Optimizer:
    optimizer = kind.__new__(kind)
    cast(Any, optimizer).__setstate__(state)
    known = {id(p): o for p, o in zip(_parameters(optimizer), found, strict=True)}
    Attachment(optimizer, transform, known)
    return optimizer
