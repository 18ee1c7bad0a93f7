"""Attach a transform to any torch optimizer: it then runs right before each step."""

from __future__ import annotations

import functools
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.weak import WeakTensorKeyDictionary

from znorm.kernels.reference import statistics_dtype
from znorm.layout import Layout
from znorm.receipts import Receipt
from znorm.rows import Description
from znorm.selection import Origin, origins
from znorm.step import check, scale_, transform_
from znorm.transforms.composition import Transform
from znorm.transforms.observe import Observe

__all__ = ["Attachment", "attach", "attachment_of"]

# What marks an optimizer as attached: an instance attribute, so that it goes with the optimizer.
_MARK = "_znorm_attachment"

_OPTIMIZER_FILE = Optimizer.profile_hook_step.__code__.co_filename


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
        alone. A list holds one for each parameter group: each rule must then match in its own
        group, and a clip by global norm takes the norm of its group.
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

    Under GradScaler with a fused optimizer gradients are unscaled here and written back; those of
    float16 parameters can then be too small for float16, where torch's kernel divides in float32.

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
        raise ValueError(
            f"optimizer: {type(optimizer).__name__} is observed already; detach that first"
        )
    if present is not None:
        raise ValueError(
            f"optimizer: {type(optimizer).__name__} has {present.transform!r} attached already; "
            "detach that first, or attach znorm.chain(first, second)"
        )
    for number, group in enumerate(optimizer.param_groups):
        for position, parameter in enumerate(group["params"]):
            if isinstance(parameter, nn.UninitializedParameter):
                raise ValueError(
                    f"group {number}, parameter {position}: not initialized yet; run one forward "
                    "pass first"
                )
    known: Mapping[Tensor, Origin]
    known = WeakTensorKeyDictionary() if model is None else origins(model)
    if model is not None and not any(p in known for p in _parameters(optimizer)):
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
        known: Mapping[Tensor, Origin],
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
        self._handles: tuple[Any, ...] = ()
        # The steps of znorm.optim transform by themselves.
        if not getattr(optimizer, "transforms_in_step", False):
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
        identity = [
            (id(p), p.device, p.shape, p.dtype) for group in groups for p in group["params"]
        ]
        if self._parts and identity == self._parts_of:
            return self._parts
        labels, found = _labels(optimizer, self._known)
        parts: list[_Part] = []
        sums = {
            id(parameter): part.receipt.sums_of(row)
            for part in self._parts
            for row, parameter in enumerate(part.parameters)
        }
        start = 0
        for held, transform in self._divided(groups):
            end = start + len(held)
            layout = Layout(
                list(zip(labels[start:end], held, strict=True)),
                Observe() if transform is None else transform,
                origins=found[start:end],
            )
            receipt = Receipt(layout, [sums.get(id(parameter)) for parameter in held])
            parts.append(_Part(held, layout, receipt))
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
        name    shape   units  kernel  transformed
        weight  (2, 4)  1      cpu     yes: ZNorm
        bias    (2,)    0      cpu     no: one dimension
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
        It costs no reading of gradients, but for :class:`~znorm.ClipValue`: what it acts on is
        copied, tensor by tensor (in a chain with others, all at once), and read once more; of a
        large tensor its figures are good to about 1e-5 of the norm. A gradient that is not finite
        makes the means so, for good.

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
        given = [_gradients(part) for part in parts]
        if len(parts) > 1:
            # Before any is written; the only one is checked as it is transformed.
            for part, gradients in zip(parts, given, strict=True):
                check(gradients, part.layout)
        with torch.set_grad_enabled(differentiable):
            for part, gradients in zip(parts, given, strict=True):
                layout, unscale = part.layout, factor
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
                    parameters=part.parameters,
                    receipt=part.receipt,
                    skipped=skipped,
                )
                if differentiable and layout.writes:
                    for parameter, gradient in zip(part.parameters, gradients, strict=True):
                        parameter.grad = gradient

    def single(self) -> tuple[Layout, Receipt] | None:
        """Layout and receipt, if one transform that reads once serves all groups."""
        if self.transform is None or isinstance(self.transform, tuple):
            return None
        (part,) = self._current()
        layout = part.layout
        if not layout.writes or layout.elementwise or len(layout.stages) > 1:
            return None
        return layout, part.receipt

    def _live(self) -> Optimizer:
        optimizer = self._optimizer()
        if optimizer is None:
            raise RuntimeError("attachment: its optimizer no longer exists")
        return optimizer

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy goes with the copy of its optimizer, which attaches anew.
        optimizer = self._live()
        if attachment_of(optimizer) is not self:
            raise TypeError("attachment: it is detached and cannot be copied; attach to the copy")
        return _attached_again, (optimizer,)

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
    if not callable(closure):
        return None  # torch's own step says what it takes
    refuse_grad_scaler()

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
    if attachment is not None and not _inside_another_step(optimizer):
        attachment.stepping = False


def _inside_another_step(optimizer: Optimizer) -> bool:
    """Whether this is the ``super().step()`` of a subclass, whose own hooks have run already.

    ``stepping`` alone does not tell: it stays set where a step was left by an exception.
    """
    steps = 0
    frame = sys._getframe()
    while frame is not None and steps < 2:
        code = frame.f_code
        # torch runs the hooks of a step in a function of this name around it.
        if code.co_name == "wrapper" and code.co_filename == _OPTIMIZER_FILE:
            steps += frame.f_locals.get("self") is optimizer
        frame = cast(FrameType, frame.f_back)
    return steps == 2


def _gradients(part: _Part) -> list[Tensor | None]:
    found: list[Tensor | None] = []
    for parameter in part.parameters:
        gradient = parameter.grad
        if gradient is not None and gradient.is_conj():
            gradient = parameter.grad = gradient.resolve_conj()
        if gradient is not None and part.layout.observes and gradient.layout != torch.strided:
            gradient = None  # nothing is written, so that nothing can be wrong
        found.append(gradient)
    return found


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


def refuse_grad_scaler() -> None:
    """Raise if a step with a closure is being taken by an enabled GradScaler.

    Raises
    ------
    RuntimeError
    """
    frame = cast(FrameType | None, sys._getframe())
    while frame is not None:
        # Of whatever optimizer: a wrapper hands the closure on to this one.
        is_scaler = frame.f_code is torch.amp.GradScaler.step.__code__
        if is_scaler and frame.f_locals["self"].is_enabled():
            raise RuntimeError(
                "closure: GradScaler cannot unscale what a closure computes, so that the step "
                "would be taken on scaled gradients; call scaler.step(optimizer) without a closure"
            )
        frame = frame.f_back


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _labels(optimizer: Optimizer, known: Mapping[Tensor, Origin]) -> tuple[list[str], list[Origin]]:
    """What to call each parameter in messages, and what is known of it."""
    found: list[Origin] = []
    places: list[tuple[int, int, Tensor]] = []
    for number, group in enumerate(optimizer.param_groups):
        names = group.get("param_names")
        for position, parameter in enumerate(group["params"]):
            origin = known.get(parameter)
            if origin is None:
                origin = Origin(names[position] if names else None)
            found.append(origin)
            places.append((number, position, parameter))
    often = Counter(origin.name for origin in found)
    labels = []
    for origin, (number, position, parameter) in zip(found, places, strict=True):
        if origin.name is None:
            labels.append(f"group {number}, parameter {position} {tuple(parameter.shape)}")
        else:
            # Groups made of several models' named parameters may share names.
            several = often[origin.name] > 1
            labels.append(f"group {number}: {origin.name}" if several else origin.name)
    return labels, found


def _attached_again(optimizer: Optimizer) -> Attachment:
    """What is attached to the copy of an optimizer."""
    attachment = attachment_of(optimizer)
    assert attachment is not None
    return attachment


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
    known = WeakTensorKeyDictionary(zip(_parameters(optimizer), found, strict=True))
    Attachment(optimizer, transform, known)
    return optimizer
