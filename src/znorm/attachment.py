"""Attach a transform to any torch optimizer: it then runs right before each step."""

from __future__ import annotations

import functools
import warnings
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from znorm._torch_internals import STEP_HOOKS, makes_empty_state, users_level
from znorm.engine.execute import multiply_, transform_
from znorm.engine.gradients import loss_scale, writable_gradients
from znorm.engine.receipts import Receipt
from znorm.engine.validate import aligned
from znorm.entries import Description
from znorm.idle import warn_if_idle, warn_if_no_gradient, warn_if_swapped
from znorm.layout import Layout
from znorm.parameter_info import (
    ParameterInfo,
    infos_from_names,
    labels,
    parameter_infos,
    why_none_belongs,
)
from znorm.sharding import placed
from znorm.step_hooks import MARK, StepHooks, own_attachment
from znorm.transforms.base import Transform
from znorm.transforms.composition import transforms_of
from znorm.transforms.observe import Observe
from znorm.wrappers import sharder_of, unwrapped, within

__all__ = ["Attachment", "attach", "attachment_of"]


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
        optimizer attached already, a parameter that cannot be transformed or is part of a flat
        shard, a rule that matches nothing.

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

    Of sharded parameters (DTensor: FSDP2, HSDP, tensor parallelism) each process measures its
    shards, and three numbers a unit cross between processes in one collective for each mesh and
    step: every process has to step.

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
        known = parameter_infos(model)
        parameters = _parameters(optimizer)
        # A process can have no share of the parameters.
        if parameters and not any(p in known for p in parameters):
            raise ValueError(
                "model: none of the optimizer's parameters belongs to it; "
                + why_none_belongs(model)
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
class _Section:
    """The parameters that share one layout: all of them, or those of a group."""

    parameters: list[Tensor]
    infos: list[ParameterInfo]
    layout: Layout
    receipt: Receipt


class Attachment:
    """A transform at work in an optimizer; made by :func:`attach`."""

    def __init__(
        self,
        optimizer: Optimizer,
        transform: Transform | tuple[Transform | None, ...] | None,
        model: nn.Module | None = None,
        known: Mapping[Tensor, ParameterInfo] | None = None,
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
        self._sections: list[_Section] = []
        self._sections_of: list[Any] = []
        self._saw_gradients = False
        self._current()
        self.hooks = StepHooks(optimizer)
        optimizer.__dict__[MARK] = self
        # deepcopy and pickle ask the instance first. torch drops hooks from copies without a
        # word, so a copy is attached anew.
        optimizer.__dict__["__reduce_ex__"] = functools.partial(_reduce, self._optimizer)

    @property
    def transform(self) -> Transform | tuple[Transform | None, ...] | None:
        """The transform that is attached; another one is attached after :meth:`detach`."""
        return self._transform

    @property
    def by_hooks(self) -> bool:
        """True if torch's hooks run the transform, and not the optimizer's step by itself."""
        return self.hooks.needed

    def _current(self) -> list[_Section]:
        """The layouts of the optimizer's parameters as they are now."""
        groups = self._live().param_groups
        identity = [
            [(id(p), p.device, p.shape, p.dtype, placed(p)) for p in group["params"]]
            for group in groups
        ]
        if self._sections and identity == self._sections_of:
            return self._sections
        # Tensors that are made while a model is validated in inference mode serve training, too.
        with torch.inference_mode(False):
            self._sections, self._sections_of = self._make_sections(), identity
        return self._sections

    def _make_sections(self) -> list[_Section]:
        optimizer = self._live()
        before = [parameter for section in self._sections for parameter in section.parameters]
        # torch steps twice on a parameter that is there twice; it has one gradient.
        groups = [list(dict.fromkeys(group["params"])) for group in optimizer.param_groups]
        now = [parameter for group in groups for parameter in group]
        if before:
            swapped = warn_if_swapped(before, now)
            self._share_of = sharder_of(optimizer, thorough=swapped)
        share = self._share_of
        if share is not None:
            self._check_inside(share)
        successors = _successors(before, now)
        infos = self._infos(groups, successors)
        names = labels(groups, infos)
        sums = {
            parameter: section.receipt.sums_of(index)
            for section in self._sections
            for index, parameter in enumerate(section.parameters)
        }
        sections: list[_Section] = []
        start = 0
        for parameters, transform in self._divided(groups):
            end = start + len(parameters)
            layout = Layout(
                list(zip(names[start:end], parameters, strict=True)),
                Observe() if transform is None else transform,
                infos=infos[start:end],
                # What a rule was for may have been taken out of the optimizer since.
                every_rule_matches=share is None and not before,
            )
            earlier = [sums.get(successors.get(parameter, parameter)) for parameter in parameters]
            receipt = Receipt(layout, earlier)
            sections.append(_Section(parameters, infos[start:end], layout, receipt))
            start = end
        if share is None:
            warn_if_idle([section.layout for section in sections])
        return sections

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
            if any(one.granularity == "global" for one in transforms_of(transform)):
                raise ValueError(
                    f"transform: {transform!r} needs the norm of all gradients, and the optimizer "
                    f"inside {kind} has one process's share of them; attach to the {kind} itself"
                )

    def _infos(
        self, groups: Sequence[Sequence[Tensor]], successors: Mapping[Tensor, Tensor]
    ) -> list[ParameterInfo]:
        """The facts that are known of each parameter."""
        model = None if self._model is None else self._model()
        known = {} if model is None else parameter_infos(model)
        # The model may be gone when more of its parameters are given.
        self._known.update(known)
        earlier = dict(self._known)
        for section in self._sections:
            earlier.update(zip(section.parameters, section.infos, strict=True))
        by_name = _infos_by_name(self._live())
        infos: list[ParameterInfo] = []
        unknown = 0
        for parameter in (parameter for group in groups for parameter in group):
            info = known.get(parameter) or earlier.get(parameter)
            named = by_name.get(parameter)
            if info is None and named is not None and named.name is not None:
                info = named
            if info is None and parameter in successors:
                info = earlier.get(successors[parameter])
            unknown += info is None
            infos.append(info or ParameterInfo(outside=model is not None))
        # The copy of an optimizer has no model to ask, and what was known of its parameters.
        if unknown and self._model is None and any(i.module is not None for i in infos):
            warnings.warn(
                f"znorm: {unknown} parameters are new to this copy of an optimizer, which does not "
                "know its model: what they are is told by their shape alone; detach, and attach "
                "with model=",
                stacklevel=users_level(),
            )
        return infos

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
        """The table of what is transformed, and what is not and why; ``.rows`` are its dicts.

        A parameter that is frozen now says so: it is transformed once it has gradients.

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
            tuple(
                _frozen(row) if row["transformed"] and not _trains(parameter) else row
                for section in self._current()
                for row, parameter in zip(
                    section.layout.describe().rows, section.parameters, strict=True
                )
            )
        )

    def receipt(self, *, reset: bool = False) -> dict[str, dict[str, float]]:
        """A record of what the transform did to each tensor that it acts on; waits for the device.

        Parameters
        ----------
        reset : bool, default False
            Whether the next one begins anew after this: for one of each epoch.

        Returns
        -------
        dict of str to dict
            By the names of :meth:`describe`, for tensors that have had a gradient. Means over the
            steps since attach or a reset: ``norm_before`` and ``norm_after`` (Euclidean), ``mean``
            and ``std`` of the entries before, ``cosine`` of the angle between the gradients before
            and after (0 where one of them is 0), ``clipped`` the share of steps in which a clip
            changed the tensor; and ``steps``, how many. A step that GradScaler skips is not
            counted.

        Notes
        -----
        It costs no reading of gradients, but for :class:`~znorm.ClipValue` and elementwise
        transforms of one's own. In a chain with others, what they act on is copied, all at once,
        and read once more; so it is for those of one's own. Where the CPU kernels do not serve,
        the figures of a large tensor are good to about 1e-5 of the norm, and :class:`ClipValue`
        alone copies, too, tensor by tensor. A gradient that is not finite makes the means so, for
        good.

        Examples
        --------
        >>> import torch, znorm
        >>> w = torch.nn.Parameter(torch.zeros(2, 2))
        >>> optimizer = torch.optim.SGD([w], lr=0.1)
        >>> attachment = znorm.attach(optimizer, znorm.ClipNorm(1.0))
        >>> w.grad = torch.tensor([[0.0, 3.0], [4.0, 0.0]])
        >>> optimizer.step()
        >>> means = attachment.receipt()["group 0, parameter 0 (2, 2)"]
        >>> means["norm_before"], means["norm_after"], means["clipped"], means["steps"]
        (5.0, 1.0, 1.0, 1)
        """
        means: dict[str, dict[str, float]] = {}
        for section in self._sections:
            means.update(section.receipt.as_dict())
            if reset:
                section.receipt.reset()
        return means

    def detach(self) -> None:
        """Take the transform out of the optimizer; a second call does nothing."""
        self.hooks.remove()
        optimizer = self._optimizer()
        if optimizer is not None and own_attachment(optimizer) is self:
            del optimizer.__dict__[MARK]
            del optimizer.__dict__["__reduce_ex__"]

    def transform_gradients(self) -> None:
        """Transform each parameter's ``grad`` once, in place unless it is differentiated."""
        optimizer = self._live()
        differentiable = bool(optimizer.defaults.get("differentiable", False))
        sections = self._current()
        if differentiable and any(section.layout.sharded for section in sections):
            raise RuntimeError(
                "attachment: differentiable=True cannot be had of sharded parameters (DTensor), "
                "whose moments cross between processes; leave it out"
            )
        writes = any(section.layout.writes for section in sections)
        inv_scale, found_inf = loss_scale(optimizer, take_over=writes)
        gradients = [
            writable_gradients(section.parameters, observes=section.layout.observes)
            for section in sections
        ]
        if not self._saw_gradients:
            self.look_for_gradients(
                [(one.layout, tensors) for one, tensors in zip(sections, gradients, strict=True)]
            )
        counts = not makes_empty_state(optimizer)
        if not counts and any(section.layout.sharded for section in sections):
            return  # a step that changes nothing, which one process may take alone
        if len(sections) > 1:
            # Before any is written; the only one is checked as it is transformed.
            for section, tensors in zip(sections, gradients, strict=True):
                aligned(tensors, section.layout)
        with torch.set_grad_enabled(differentiable):
            for section, tensors in zip(sections, gradients, strict=True):
                layout, unscale = section.layout, inv_scale
                if writes and not layout.writes and inv_scale is not None:
                    # What is taken over for one group is taken over for all.
                    multiply_(tensors, inv_scale)
                    unscale = None
                if not layout.transforms:
                    continue
                if differentiable:
                    tensors = [g if g is None else g.clone() for g in tensors]
                transform_(
                    tensors,
                    layout,
                    inv_scale=unscale,
                    parameters=section.parameters,
                    receipt=section.receipt if counts else None,
                    found_inf=found_inf,
                )
                if differentiable and layout.writes:
                    for parameter, gradient in zip(section.parameters, tensors, strict=True):
                        parameter.grad = gradient
        self.hooks.remember(self._present)

    def look_for_gradients(
        self, gradients: Sequence[tuple[Layout, Sequence[Tensor | None]]]
    ) -> None:
        """Warn once if the first gradients that come are none that the transform acts on."""
        if not self._saw_gradients:
            self._saw_gradients = warn_if_no_gradient(self.transform, gradients)

    def _present(self) -> list[Tensor]:
        parameters = _parameters(self._live())
        return [parameter.grad for parameter in parameters if parameter.grad is not None]

    def has_new_gradients(self) -> bool:
        """True if gradients have come, or been written, since they were transformed last."""
        return self.hooks.has_changed(self._present())

    def single(self) -> tuple[Layout, Receipt] | None:
        """Layout and receipt, if one transform that reads once serves all groups."""
        if self.transform is None or isinstance(self.transform, tuple):
            return None
        (section,) = self._current()
        layout = section.layout
        if not layout.writes or layout.elementwise or len(layout.stages) > 1:
            return None
        return layout, section.receipt

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


def attachment_of(optimizer: Optimizer) -> Attachment | None:
    """The attachment of an optimizer; None where it has none, after a resume for example.

    Checkpoints hold no transform: a script that resumes attaches it anew.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Or what wraps it.

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
        return cast(Attachment, present)
    inside = (attachment_of(inner) for inner in within(optimizer).values())
    return next((one for one in inside if one is not None), None)


def _trains(parameter: Tensor) -> bool:
    """True if backward gives it a gradient, or a user has."""
    return parameter.requires_grad or parameter.grad is not None


def _frozen(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "transformed": False, "why": "frozen"}


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _infos_by_name(optimizer: Optimizer) -> dict[Tensor, ParameterInfo]:
    """The facts that the names of an optimizer's parameters tell."""
    names: list[str | None] = []
    for group in optimizer.param_groups:
        told = group.get("param_names", ())
        # What replaces a group's parameters may leave the old names behind.
        names += told if len(told) == len(group["params"]) else [None] * len(group["params"])
    return dict(zip(_parameters(optimizer), infos_from_names(names), strict=True))


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


def _attached_again(optimizer: Optimizer) -> Attachment:
    """The attachment of the copy of an optimizer."""
    attachment = own_attachment(optimizer)
    assert isinstance(attachment, Attachment)
    return attachment


def _reduce(reference: weakref.ref[Optimizer], protocol: Any) -> tuple[Any, ...]:
    optimizer = reference()
    assert optimizer is not None
    attachment = _attached_again(optimizer)
    known = {
        parameter: info
        for section in attachment._current()
        for parameter, info in zip(section.parameters, section.infos, strict=True)
    }
    infos = [known[parameter] for parameter in _parameters(optimizer)]
    state = cast(Any, optimizer).__getstate__()
    if isinstance(state, dict):
        state = _without_own(state, attachment)
    return _restore, (type(optimizer), state, attachment.transform, infos)


def _without_own(state: dict[str, Any], attachment: Attachment) -> dict[str, Any]:
    """The state of a class that gives all attributes away, without what is put there here."""
    ids = attachment.hooks.ids
    kept = {k: v for k, v in state.items() if k not in (MARK, "__reduce_ex__", "_fused_step")}
    for name in STEP_HOOKS:
        if name in kept:
            hooks = ((number, hook) for number, hook in kept[name].items() if number not in ids)
            kept[name] = type(kept[name])(hooks)
    return kept


def _restore(
    kind: type[Optimizer],
    state: Any,
    transform: Transform | tuple[Transform | None, ...] | None,
    infos: list[ParameterInfo],
) -> Optimizer:
    optimizer = kind.__new__(kind)
    cast(Any, optimizer).__setstate__(state)
    known = dict(zip(_parameters(optimizer), infos, strict=True))
    Attachment(optimizer, transform, known=known)
    return optimizer
