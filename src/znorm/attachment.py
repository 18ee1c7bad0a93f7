"""Attach a transform to any torch optimizer: it then runs right before each step."""

from __future__ import annotations

import functools
import inspect
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from znorm.callers import inside_another_step, makes_empty_state, refuse_grad_scaler, users_level
from znorm.kernels.reference import statistics_dtype
from znorm.layout import Layout
from znorm.origins import Origin, origins, origins_of_names
from znorm.receipts import Receipt
from znorm.rows import Description
from znorm.step import check, scale_, transform_
from znorm.transforms.composition import Transform
from znorm.transforms.observe import Observe
from znorm.wrappers import sharder_of, unwrapped, within

__all__ = ["Attachment", "attach", "attachment_of", "own_attachment", "warn_if_idle"]

# What marks an optimizer as attached: an instance attribute, so that it goes with the optimizer.
_MARK = "_znorm_attachment"

_gradient = attrgetter("grad")


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
        Any, in any variant. Of what Lightning, Fabric or accelerate has wrapped, the one inside.
    transform : transform, None, or a list of them
        Such as ``znorm.ZNorm()``. None observes: gradients are measured for the receipt and left
        alone. A list holds one for each parameter group: each rule must then match in its own
        group, and a clip by global norm takes the norm of its group.
    model : torch.nn.Module, optional
        Gives names to parameters, and tells normalizations, transposed convolutions and the packed
        weights of attention. It is looked at again when the optimizer's parameters change.

    Returns
    -------
    Attachment
        Keep it or not; the optimizer holds it.

    Raises
    ------
    TypeError, ValueError
        For anything that is not an optimizer, what wraps one in a way that is not known, an
        optimizer attached already, a parameter that cannot be transformed or is sharded, a rule
        that matches nothing.

    Warns
    -----
    UserWarning
        If the transform acts on no parameter at all, saying why; later, if parameters are replaced
        by others of other shapes, or if those that it acts on have no gradient in the first step.

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
    optimizer = unwrapped(optimizer)
    _check_not_attached(optimizer)
    for number, group in enumerate(optimizer.param_groups):
        for position, parameter in enumerate(group["params"]):
            if isinstance(parameter, nn.UninitializedParameter):
                raise ValueError(
                    f"group {number}, parameter {position}: not initialized yet; run one forward "
                    "pass first"
                )
    if model is not None:
        known = origins(model)
        parameters = _parameters(optimizer)
        # A process can have no share of the parameters.
        if parameters and not any(p in known for p in parameters):
            raise ValueError(
                "model: none of the optimizer's parameters belongs to it; pass the very model "
                "whose parameters the optimizer trains, not a copy"
            )
    several = tuple(transform) if isinstance(transform, list | tuple) else transform
    return Attachment(
        optimizer,
        cast("Transform | tuple[Transform | None, ...]", several),
        model,
        # Flat partitions are vectors, and nothing but vectors.
        share_of=sharder_of(optimizer, thorough=all(p.dim() < 2 for p in _parameters(optimizer))),
    )


def _check_not_attached(optimizer: Optimizer) -> None:
    """Raise if the optimizer, or what it steps by, has a transform already."""
    for one in (optimizer, *within(optimizer).values()):
        present = own_attachment(one)
        kind = type(one).__name__
        if present is not None and present.transform is None:
            raise ValueError(f"optimizer: {kind} is observed already; detach that first")
        if present is not None:
            raise ValueError(
                f"optimizer: {kind} has {present.transform!r} attached already; detach that "
                "first, or attach znorm.chain(first, second)"
            )


@dataclass
class _Part:
    """The parameters that share one layout: all of them, or those of a group."""

    parameters: list[Tensor]
    origins: list[Origin]
    layout: Layout
    receipt: Receipt


class Attachment:
    """A transform at work in an optimizer; made by :func:`attach`."""

    def __init__(
        self,
        optimizer: Optimizer,
        transform: Transform | tuple[Transform | None, ...] | None,
        model: nn.Module | None = None,
        known: Mapping[Tensor, Origin] | None = None,
        share_of: Any | None = None,
    ) -> None:
        self._transform = transform
        # What has made the optimizer for one process's share of the parameters, if so.
        self._share_of = share_of
        # Weak: the optimizer holds the attachment, and a cycle would keep gradients alive.
        self._optimizer = weakref.ref(optimizer)
        # Weak, since it may be gone before the optimizer. Parameters are held as the optimizer
        # holds them: torch swaps no tensor that has a weak reference.
        self._model = None if model is None else weakref.ref(model)
        self._known = dict(known or {})
        self._parts: list[_Part] = []
        self._parts_of: list[Any] = []
        self._acted = False
        self._current()
        self.stepping = False
        self.closure_at = _place_of_closure(type(optimizer))
        # Outside of what torch.compile traces: torch breaks the graph at this very place, and
        # what is attached must add no frame, no guard and no recompilation of its own.
        self._handles: tuple[Any, ...] = ()
        # The steps of znorm.optim transform by themselves; that of a class made of one does not, as
        # far as can be told.
        self.by_hooks = not _steps_by_itself(type(optimizer))
        # Whether a step may be that of a subclass, which calls its parent's.
        self._nests = sum("step" in vars(kind) for kind in type(optimizer).__mro__) > 2
        self._transformed: list[tuple[Tensor, int]] = []
        if self.by_hooks and self._nests:
            _watch_parents(type(optimizer))
        if self.by_hooks:
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

    @property
    def transform(self) -> Transform | tuple[Transform | None, ...] | None:
        """What is attached; another one is attached after :meth:`detach`."""
        return self._transform

    def _current(self) -> list[_Part]:
        """The layouts of the optimizer's parameters as they are now."""
        groups = self._live().param_groups
        identity = [
            [(id(p), p.device, p.shape, p.dtype) for p in group["params"]] for group in groups
        ]
        if self._parts and identity == self._parts_of:
            return self._parts
        # Tensors that are made while a model is validated in inference mode serve training, too.
        with torch.inference_mode(False):
            self._parts, self._parts_of = self._make_parts(), identity
        return self._parts

    def _make_parts(self) -> list[_Part]:
        optimizer = self._live()
        before = [parameter for part in self._parts for parameter in part.parameters]
        # torch steps twice on a parameter that is there twice; it has one gradient.
        groups = [list(dict.fromkeys(group["params"])) for group in optimizer.param_groups]
        now = [parameter for group in groups for parameter in group]
        if before:
            swapped = _warn_if_swapped(before, now)
            self._share_of = sharder_of(optimizer, thorough=swapped)
        share = self._share_of
        if share is not None:
            self._check_inside(share)
        successors = _successors(before, now)
        labels, found = self._labelled(groups, successors)
        sums = {
            parameter: part.receipt.sums_of(row)
            for part in self._parts
            for row, parameter in enumerate(part.parameters)
        }
        parts: list[_Part] = []
        start = 0
        for held, transform in self._divided(groups):
            end = start + len(held)
            layout = Layout(
                list(zip(labels[start:end], held, strict=True)),
                Observe() if transform is None else transform,
                origins=found[start:end],
                # What a rule was for may have been taken out of the optimizer since.
                every_rule_matches=share is None and not before,
            )
            earlier = [sums.get(successors.get(parameter, parameter)) for parameter in held]
            parts.append(_Part(held, found[start:end], layout, Receipt(layout, earlier)))
            start = end
        if share is None:
            warn_if_idle([part.layout for part in parts])
        return parts

    def _check_inside(self, sharder: Any) -> None:
        """Raise for what must not be attached to the optimizer of one process's share."""
        kind = type(sharder).__name__
        present = own_attachment(sharder)
        if present is not None and present is not self:
            raise ValueError(
                f"optimizer: {kind}, which steps by this one, has {present.transform!r} attached "
                "already; detach that first"
            )
        several = self.transform if isinstance(self.transform, tuple) else (self.transform,)
        for transform in several:
            if getattr(transform, "joint", False):
                raise ValueError(
                    f"transform: {transform!r} needs the norm of all gradients, and the optimizer "
                    f"inside {kind} has one process's share of them; attach to the {kind} itself"
                )

    def _labelled(
        self, groups: Sequence[Sequence[Tensor]], successors: Mapping[Tensor, Tensor]
    ) -> tuple[list[str], list[Origin]]:
        """What to call each parameter in messages, and what is known of it."""
        model = None if self._model is None else self._model()
        known = {} if model is None else origins(model)
        # The model may be gone when more of its parameters are given.
        self._known.update(known)
        earlier = dict(self._known)
        for part in self._parts:
            earlier.update(zip(part.parameters, part.origins, strict=True))
        by_name = _origins_by_name(self._live())
        found: list[Origin] = []
        unknown = 0
        for parameter in (parameter for group in groups for parameter in group):
            origin = known.get(parameter) or earlier.get(parameter)
            named = by_name.get(parameter)
            if origin is None and named is not None and named.name is not None:
                origin = named
            if origin is None and parameter in successors:
                origin = earlier.get(successors[parameter])
            unknown += origin is None
            found.append(origin or Origin(outside=model is not None))
        # The copy of an optimizer has no model to ask, and what was known of its parameters.
        if unknown and self._model is None and any(o.module is not None for o in found):
            warnings.warn(
                f"znorm: {unknown} parameters are new to this copy of an optimizer, which does not "
                "know its model: what they are is told by their shape alone; detach, and attach "
                "with model=",
                stacklevel=users_level(),
            )
        places = [
            (number, position, parameter)
            for number, group in enumerate(groups)
            for position, parameter in enumerate(group)
        ]
        often = Counter(origin.name for origin in found)
        in_group = Counter(
            (number, origin.name) for origin, (number, *_) in zip(found, places, strict=True)
        )
        labels = []
        for origin, (number, position, parameter) in zip(found, places, strict=True):
            if origin.name is None:
                labels.append(f"group {number}, parameter {position} {tuple(parameter.shape)}")
            else:
                # Groups made of several models' named parameters may share names.
                label = origin.name
                if often[label] > 1:
                    label = f"group {number}: {label}"
                if in_group[number, origin.name] > 1:
                    label += f", parameter {position}"
                labels.append(label)
        return labels, found

    def _divided(
        self, groups: Sequence[list[Tensor]]
    ) -> list[tuple[list[Tensor], Transform | None]]:
        if not isinstance(self.transform, tuple):
            return [([parameter for group in groups for parameter in group], self.transform)]
        if len(groups) != len(self.transform):
            raise ValueError(
                f"transform: found {len(self.transform)} for {len(groups)} parameter groups; "
                "detach, and attach a list with one for each group, None where gradients are left "
                "alone"
            )
        return list(zip(groups, self.transform, strict=True))

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
        if optimizer is not None and own_attachment(optimizer) is self:
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
        if not self._acted:
            self.see([(part.layout, held) for part, held in zip(parts, given, strict=True)])
        counts = not makes_empty_state(optimizer)
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
                    receipt=part.receipt if counts else None,
                    skipped=skipped,
                )
                if differentiable and layout.writes:
                    for parameter, gradient in zip(part.parameters, gradients, strict=True):
                        parameter.grad = gradient
        if self._nests:
            self._transformed = [(gradient, gradient._version) for gradient in self._present()]

    def see(self, given: Sequence[tuple[Layout, Sequence[Tensor | None]]]) -> None:
        """Warn once if the first gradients that come are none that the transform acts on."""
        if self._acted:
            return
        rows = [
            (row.selected and layout.writes, gradient is not None)
            for layout, gradients in given
            for row, gradient in zip(layout.rows, gradients, strict=True)
        ]
        self._acted = any(present for _, present in rows)
        # Where it acts on nothing at all, that has been said.
        acts = [present for selected, present in rows if selected]
        if self._acted and acts and not any(acts):
            warnings.warn(
                f"znorm: {self.transform!r} acts on parameters that have no gradient, while "
                "others have one: this step is taken without it; describe() tells which they are",
                stacklevel=users_level(),
            )

    def has_new_gradients(self) -> bool:
        """Whether gradients have come, or been written, since they were transformed last."""
        now = self._present()
        return len(now) != len(self._transformed) or any(
            one is not other or one._version != version
            for one, (other, version) in zip(now, self._transformed, strict=True)
        )

    def _present(self) -> list[Tensor]:
        parameters = _parameters(self._live())
        return [parameter.grad for parameter in parameters if parameter.grad is not None]

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
        if own_attachment(optimizer) is not self:
            raise TypeError("attachment: it is detached and cannot be copied; attach to the copy")
        return _attached_again, (optimizer,)

    def __repr__(self) -> str:
        return f"Attachment({self.transform!r})"


def _watch_parents(kind: type[Optimizer]) -> None:
    """Look at gradients as the steps of a class's parents begin.

    A subclass may compute gradients anew before it calls its parent's step. torch's own hooks are
    around that step only once it has made a plain parent; to put them there would run the user's
    hooks twice.
    """
    for parent in kind.__mro__[1:]:
        step = vars(parent).get("step")
        if not (issubclass(parent, Optimizer) and parent is not Optimizer and callable(step)):
            continue
        if not (getattr(step, "hooked", False) or getattr(step, "watched_by_znorm", False)):
            cast(Any, parent).step = _watched(parent, step)


def _watched(parent: type[Optimizer], step: Callable[..., Any]) -> Callable[..., Any]:
    """The step of a parent, before which new gradients are transformed."""

    @functools.wraps(step)
    def watched(optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
        attachment = own_attachment(optimizer)
        if (
            attachment is None
            or not attachment.by_hooks
            or _owner_of_step(type(optimizer)) is parent  # torch runs hooks around that
        ):
            return step(optimizer, *args, **kwargs)
        if attachment.stepping:
            torch.compiler.disable(_transform_what_is_new)(attachment)
            return step(optimizer, *args, **kwargs)
        # Called past the step of the optimizer's own class.
        changed = torch.compiler.disable(_before_step)(optimizer, (optimizer, *args), kwargs)
        given, named = changed or ((optimizer, *args), kwargs)
        try:
            return step(*given, **named)
        finally:
            attachment.stepping = False

    cast(Any, watched).watched_by_znorm = True
    return watched


def _transform_what_is_new(attachment: Attachment) -> None:
    if attachment.has_new_gradients():
        attachment.transform_gradients()


def _owner_of_step(kind: type[Optimizer]) -> type:
    return next((one for one in kind.__mro__ if "step" in vars(one)), kind)


def _place_of_closure(kind: type[Optimizer]) -> int | None:
    """Which argument of a class's step is called closure, the optimizer itself being number 0."""
    try:
        names = list(inspect.signature(cast(Any, kind).step).parameters)
    except (TypeError, ValueError):
        return None
    return names.index("closure") if "closure" in names else None


def _steps_by_itself(kind: type[Optimizer]) -> bool:
    """Whether the step of a class is one of `znorm.optim`, not one that stands in its place."""
    return "transforms_in_step" in vars(_owner_of_step(kind))


def attachment_of(optimizer: Optimizer) -> Attachment | None:
    """What is attached to an optimizer; None where nothing is, after a resume for example.

    Checkpoints hold no transform: a script that resumes attaches it anew.

    Examples
    --------
    >>> import torch, znorm
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2, 2))])
    >>> attachment = znorm.attach(optimizer, znorm.ZNorm())
    >>> znorm.attachment_of(optimizer) is attachment
    True
    """
    present = own_attachment(optimizer)
    if present is not None:
        return present
    found = (attachment_of(inner) for inner in within(optimizer).values())
    return next((one for one in found if one is not None), None)


def own_attachment(optimizer: Optimizer) -> Attachment | None:
    """What is attached to this very optimizer, not to one inside of it."""
    return cast("Attachment | None", getattr(optimizer, "__dict__", {}).get(_MARK))


def _before_step(
    optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    attachment = own_attachment(optimizer)
    if attachment is None:
        return None
    if attachment.stepping and inside_another_step(optimizer):
        # The subclass's hook has run. What it has computed since is new, and not transformed yet.
        _transform_what_is_new(attachment)
        return None
    attachment.stepping = True
    if kwargs.get("grad_scaler") is not None:
        raise RuntimeError(
            "attachment: this step takes the GradScaler itself and unscales within, after the "
            "transform; call scaler.unscale_(optimizer) and optimizer.step() instead"
        )
    # This hook runs before the closure, when there is no gradient yet, or the last step's. By
    # torch's custom it is called so; a step that calls none so may have one function as argument.
    places: list[int | str] = [n for n in range(1, len(args)) if callable(args[n])]
    places += [name for name, value in kwargs.items() if callable(value)]
    if attachment.closure_at is not None:
        places = [place for place in places if place in ("closure", attachment.closure_at)]
    if len(places) != 1:
        attachment.transform_gradients()
        return None
    refuse_grad_scaler()
    (place,) = places
    closure = kwargs[place] if isinstance(place, str) else args[place]

    @functools.wraps(closure)
    def transformed(*given: Any, **named: Any) -> Any:
        loss = closure(*given, **named)
        torch.compiler.disable(attachment.transform_gradients)()
        return loss

    if isinstance(place, str):
        return args, {**kwargs, place: transformed}
    return (*args[:place], transformed, *args[place + 1 :]), kwargs


def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    attachment = own_attachment(optimizer)
    if attachment is not None and not inside_another_step(optimizer):
        attachment.stepping = False


def _gradients(part: _Part) -> list[Tensor | None]:
    """The gradients as they can be written, each in memory of its own."""
    found = list(map(_gradient, part.parameters))
    present: list[Tensor] = [gradient for gradient in found if gradient is not None]
    # All of them at a time, since this is done in each step and seldom finds anything.
    if not _are_usual(present):
        found = [_writable(parameter, part.layout.observes) for parameter in part.parameters]
        present = [gradient for gradient in found if gradient is not None]
    places = _places(present)
    if len(set(places)) < len(places):
        _separate(part.parameters, found)
    return found


def _are_usual(gradients: Sequence[Tensor]) -> bool:
    try:
        return (
            set(map(type, gradients)) <= {Tensor}
            and all(map(Tensor.is_contiguous, gradients))
            and not any(map(Tensor.is_conj, gradients))
        )
    except RuntimeError:  # sparse ones of some layouts
        return False


def _writable(parameter: Tensor, observes: bool) -> Tensor | None:
    gradient = parameter.grad
    if gradient is not None and gradient.is_conj():
        gradient = parameter.grad = gradient.resolve_conj()
    if gradient is not None and gradient.layout != torch.strided:
        if observes:
            gradient = None  # nothing is written, so that nothing can be wrong
    elif gradient is not None and not gradient.is_contiguous() and 0 in gradient.stride():
        # Expanded: several entries lie in one place, which cannot be written one by one.
        gradient = parameter.grad = gradient.clone(memory_format=torch.contiguous_format)
    return gradient


def _places(gradients: Sequence[Tensor]) -> list[int]:
    """Where each begins in memory; what has no place there counts as itself."""
    try:
        if set(map(type, gradients)) <= {Tensor}:
            places = list(map(Tensor.data_ptr, gradients))
            if 0 not in places:
                return places
        return [(type(g) is Tensor and g.data_ptr()) or id(g) for g in gradients]
    except RuntimeError:  # functorch's tensors
        return list(map(id, gradients))


def _separate(parameters: Sequence[Tensor], gradients: list[Tensor | None]) -> None:
    """Give each parameter a gradient of its own, where several share one that is to be written."""
    seen: set[int] = set()
    for number, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
        if gradient is None:
            continue
        (place,) = _places([gradient])
        if place in seen:
            gradients[number] = parameter.grad = gradient.clone()
        seen.add(place)


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


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _origins_by_name(optimizer: Optimizer) -> dict[Tensor, Origin]:
    """What the names tell that an optimizer was given with its parameters."""
    names: list[str | None] = []
    for group in optimizer.param_groups:
        given = group.get("param_names", ())
        # What replaces a group's parameters may leave the old names behind.
        names += given if len(given) == len(group["params"]) else [None] * len(group["params"])
    return dict(zip(_parameters(optimizer), origins_of_names(names), strict=True))


def _successors(before: Sequence[Tensor], now: Sequence[Tensor]) -> dict[Tensor, Tensor]:
    """For each new parameter the old one whose place and shape it has taken, as a load does."""
    if len(before) != len(now):
        return {}
    known, kept = set(before), set(now)
    return {
        new: old
        for new, old in zip(now, before, strict=True)
        if new not in known and old not in kept and new.shape == old.shape
    }


def _warn_if_swapped(before: Sequence[Tensor], now: Sequence[Tensor]) -> bool:
    """Whether parameters were replaced by others of other shapes, which is said."""
    old, new = set(before), set(now)
    gone = Counter(tuple(p.shape) for p in before if p not in new)
    come = Counter(tuple(p.shape) for p in now if p not in old)
    if not gone or not come or gone == come:
        return False
    warnings.warn(
        f"znorm: {gone.total()} parameters of the optimizer have been replaced by {come.total()} "
        f"of other shapes, such as {next(iter(come - gone or come))}; if these are shards or "
        "vectors made of several layers, what a layer is can no longer be told: detach the "
        "transform",
        stacklevel=users_level(),
    )
    return True


def warn_if_idle(layouts: Sequence[Layout]) -> None:
    """Warn of each transform that acts on none of its parameters, saying why.

    A layout each for the groups of an optimizer, if they have transforms of their own.
    """
    for number, layout in enumerate(layouts):
        of = f"group {number}: " if len(layouts) > 1 else ""
        if not layout.writes or not (layout.rows or of):
            continue
        idle = [
            link
            for position, link in enumerate(layout.links)
            if not any(row.acts[position] for row in layout.rows)
        ]
        if not idle:
            continue
        if not layout.rows:
            sentence = f"{layout.transform!r} acts on nothing, since the group is empty"
        elif len(idle) < len(layout.links):
            shown = ", ".join(map(repr, idle))
            sentence = (
                f"{shown} of {layout.transform!r} acts on none of the {len(layout.rows)} "
                "parameters; describe() says why of each"
            )
        else:
            reasons = Counter(row.why for row in layout.rows)
            sentence = (
                f"{layout.transform!r} acts on none of the {len(layout.rows)} parameters: "
                + "; ".join(f"{several} of {why}" for why, several in reasons.items())
            )
        warnings.warn(f"znorm: {of}{sentence}", stacklevel=users_level())


def _attached_again(optimizer: Optimizer) -> Attachment:
    """What is attached to the copy of an optimizer."""
    attachment = own_attachment(optimizer)
    assert attachment is not None
    return attachment


def _reduce(reference: weakref.ref[Optimizer], protocol: Any) -> tuple[Any, ...]:
    optimizer = reference()
    assert optimizer is not None
    attachment = own_attachment(optimizer)
    assert attachment is not None
    known = {
        parameter: origin
        for part in attachment._current()
        for parameter, origin in zip(part.parameters, part.origins, strict=True)
    }
    found = [known[parameter] for parameter in _parameters(optimizer)]
    state = cast(Any, optimizer).__getstate__()
    if isinstance(state, dict):
        state = _without_own(state, attachment)
    return _restore, (type(optimizer), state, attachment.transform, found)


def _without_own(state: dict[str, Any], attachment: Attachment) -> dict[str, Any]:
    """The state of a class that gives all attributes away, without what is put there here."""
    ids = {handle.id for handle in attachment._handles}
    kept = {k: v for k, v in state.items() if k not in (_MARK, "__reduce_ex__", "_fold")}
    for name in ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"):
        if name in kept:
            hooks = ((number, hook) for number, hook in kept[name].items() if number not in ids)
            kept[name] = type(kept[name])(hooks)
    return kept


def _restore(
    kind: type[Optimizer],
    state: Any,
    transform: Transform | tuple[Transform | None, ...] | None,
    found: list[Origin],
) -> Optimizer:
    optimizer = kind.__new__(kind)
    cast(Any, optimizer).__setstate__(state)
    known = dict(zip(_parameters(optimizer), found, strict=True))
    Attachment(optimizer, transform, known=known)
    return optimizer
