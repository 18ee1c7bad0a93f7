"""The hooks by which a transform runs right before an optimizer's step.

torch runs an optimizer's hooks around the step of its own class, before a closure is called. A
subclass may compute gradients anew before it calls its parent's step, and a closure computes them
within: here the transform is moved to where the gradients are.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from znorm._torch_internals import (
    inside_another_step,
    refuse_grad_scaler,
    step_is_hooked,
    version_of,
)

__all__ = ["MARK", "StepHooks", "own_attachment"]

# What marks an optimizer as attached: an instance attribute, so that it goes with the optimizer.
MARK = "_znorm_attachment"


class Attached(Protocol):
    """An attachment, as far as the hooks need to know it."""

    @property
    def transform(self) -> Any: ...
    @property
    def hooks(self) -> StepHooks: ...
    def transform_gradients(self) -> None: ...
    def has_new_gradients(self) -> bool: ...


def own_attachment(optimizer: Any) -> Any | None:
    """The attachment of this very optimizer, not of one inside of it; None if it has none."""
    return getattr(optimizer, "__dict__", {}).get(MARK)


class StepHooks:
    """The hooks of one attachment in its optimizer.

    Attributes
    ----------
    needed : bool
        Whether hooks run the transform. The steps of `znorm.optim` transform by themselves; that of
        a class made of one does not, as far as can be told.
    stepping : bool
        Whether a step has begun, and its transform has run.
    closure_at : int or None
        The position of the step's argument that is called closure.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        kind = type(optimizer)
        self.stepping = False
        self.closure_at = _place_of_closure(kind)
        self.needed = not _steps_by_itself(kind)
        # Whether a step may be that of a subclass, which calls its parent's.
        self._nests = sum("step" in vars(parent) for parent in kind.__mro__) > 2
        self._transformed: list[tuple[Tensor, int]] = []
        self._handles: tuple[Any, ...] = ()
        if not self.needed:
            return
        if self._nests:
            _watch_parents(kind)
        # Outside of what torch.compile traces: torch breaks the graph at this very place, and what
        # is attached must add no frame, no guard and no recompilation of its own.
        before, after = map(torch.compiler.disable, (_before_step, _after_step))
        self._handles = (
            optimizer.register_step_pre_hook(cast(Callable[..., Any], before)),
            optimizer.register_step_post_hook(after),
        )

    @property
    def ids(self) -> set[int]:
        """The keys under which the optimizer keeps them."""
        return {handle.id for handle in self._handles}

    def remove(self) -> None:
        """Take them out; a second call does nothing."""
        for handle in self._handles:
            handle.remove()

    def remember(self, present: Callable[[], Sequence[Tensor]]) -> None:
        """Note which gradients have been transformed, where a step may be made of several."""
        if self._nests:
            self._transformed = [(gradient, version_of(gradient)) for gradient in present()]

    def has_changed(self, gradients: Sequence[Tensor]) -> bool:
        """True if these are others than those remembered, or have been written since."""
        return len(gradients) != len(self._transformed) or any(
            one is not other or version_of(one) != version
            for one, (other, version) in zip(gradients, self._transformed, strict=True)
        )


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
        if not (step_is_hooked(step) or getattr(step, "watched_by_znorm", False)):
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
        if attachment.hooks.stepping:
            torch.compiler.disable(_transform_what_is_new)(attachment)
            return step(optimizer, *args, **kwargs)
        # Called past the step of the optimizer's own class.
        changed = torch.compiler.disable(_before_step)(optimizer, (optimizer, *args), kwargs)
        positional, named = changed or ((optimizer, *args), kwargs)
        try:
            return step(*positional, **named)
        finally:
            attachment.hooks.stepping = False

    cast(Any, watched).watched_by_znorm = True
    return watched


def _transform_what_is_new(attachment: Attached) -> None:
    if attachment.has_new_gradients():
        attachment.transform_gradients()


def _owner_of_step(kind: type[Optimizer]) -> type:
    return next((one for one in kind.__mro__ if "step" in vars(one)), kind)


def _place_of_closure(kind: type[Optimizer]) -> int | None:
    """The position of the argument called closure of a class's step, the optimizer being 0."""
    try:
        names = list(inspect.signature(cast(Any, kind).step).parameters)
    except (TypeError, ValueError):
        return None
    return names.index("closure") if "closure" in names else None


def _steps_by_itself(kind: type[Optimizer]) -> bool:
    """True if the step of a class is one of `znorm.optim`, not one that stands in its place."""
    return "transforms_in_step" in vars(_owner_of_step(kind))


def _before_step(
    optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    attachment: Attached | None = own_attachment(optimizer)
    if attachment is None:
        return None
    hooks = attachment.hooks
    if hooks.stepping and inside_another_step(optimizer):
        # The subclass's hook has run. What it has computed since is new, and not transformed yet.
        _transform_what_is_new(attachment)
        return None
    hooks.stepping = True
    if kwargs.get("grad_scaler") is not None:
        raise RuntimeError(
            "attachment: this step takes the GradScaler itself and unscales within, after the "
            "transform; call scaler.unscale_(optimizer) and optimizer.step() instead"
        )
    # This hook runs before the closure, when there is no gradient yet, or the last step's. By
    # torch's custom it is called so; a step that calls none so may have one function as argument.
    places: list[int | str] = [n for n in range(1, len(args)) if callable(args[n])]
    places += [name for name, value in kwargs.items() if callable(value)]
    if hooks.closure_at is not None:
        places = [place for place in places if place in ("closure", hooks.closure_at)]
    if len(places) != 1:
        attachment.transform_gradients()
        return None
    refuse_grad_scaler()
    (place,) = places
    closure = kwargs[place] if isinstance(place, str) else args[place]

    @functools.wraps(closure)
    def transformed(*positional: Any, **named: Any) -> Any:
        loss = closure(*positional, **named)
        torch.compiler.disable(attachment.transform_gradients)()
        return loss

    if isinstance(place, str):
        return args, {**kwargs, place: transformed}
    return (*args[:place], transformed, *args[place + 1 :]), kwargs


def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    attachment: Attached | None = own_attachment(optimizer)
    if attachment is not None and not inside_another_step(optimizer):
        attachment.hooks.stepping = False
