"""Step in backward: each parameter is updated as its gradient completes, and the gradient freed."""

from __future__ import annotations

import functools
import inspect
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from znorm._torch_internals import (
    accumulation_hooks,
    ddp_forward_runs,
    identity_behind,
    is_functional_call,
    metadata_of,
    parameters_in,
    reset_accumulation_hooks,
    running_backward,
    running_losses,
    users_level,
)
from znorm.attachment import Attachment
from znorm.entries import ParameterEntry
from znorm.idle import warn_if_idle
from znorm.layout import Layout
from znorm.parameter_info import parameter_infos
from znorm.step_hooks import own_attachment
from znorm.transforms.base import Transform
from znorm.transforms.composition import Chain, transforms_of
from znorm.wrappers import unwrapped

__all__ = ["BackwardStepping", "in_backward"]

_MARK = "_znorm_in_backward"

# Operations from the loss back to where it was scaled: sums and means of a few losses.
_LOOKED_AT = 64


def in_backward(
    model: nn.Module,
    make_optimizer: Callable[[list[nn.Parameter]], Optimizer],
    transform: Transform | None = None,
) -> BackwardStepping:
    """Make ``loss.backward()`` transform, step and free each gradient as soon as it is complete.

    At no time are all gradients there together, which saves most of their memory. One backward is
    one step: gradients cannot be accumulated over several, and nothing that needs them all at
    once, such as clipping by their global norm, is possible. There is no ``optimizer.step()`` to
    call. It takes more time than one step for all: each parameter has an optimizer of its own. What
    is frozen now, or added later, stays untrained, which a later forward says; detach, and call
    this again. A copy of the model, by ``deepcopy``, pickle or ``AveragedModel``, is a plain one.

    Parameters
    ----------
    model : torch.nn.Module
        Its parameters that require a gradient are trained.
    make_optimizer : callable (list of one Parameter) -> torch.optim.Optimizer
        Called for each parameter, such as ``lambda p: torch.optim.Adam(p, lr=1e-3)``.
    transform : transform, optional
        Any that does not need all gradients at once.

    Returns
    -------
    BackwardStepping
        Its ``optimizers`` are for schedulers, one for each.

    Raises
    ------
    TypeError, ValueError
        Where it would be wrong: under DistributedDataParallel, whose all-reduce comes after this
        step; for a transform that needs all gradients at once; if a parameter has a gradient
        already, or steps in backward already; for an optimizer whose step needs a closure; and
        for what :func:`znorm.attach` refuses.
    RuntimeError
        From a later forward or backward: if the loss is scaled by a GradScaler, since what
        overflowed would be stepped on before that is known; if a parameter has been given a
        gradient meanwhile, or its module been wrapped in DistributedDataParallel; within a
        reentrant checkpoint, where a shared parameter's gradient comes in several parts; if a
        shared parameter has been replaced by several.

    Warns
    -----
    UserWarning
        If the transform acts on no parameter at all; from a later forward, for what is not trained.

    Examples
    --------
    >>> import torch, znorm
    >>> net = torch.nn.Linear(4, 2)
    >>> handle = znorm.in_backward(net, lambda p: torch.optim.SGD(p, lr=0.1), znorm.ZNorm())
    >>> before = net.weight.detach().clone()
    >>> net(torch.randn(8, 4)).square().mean().backward()
    >>> net.weight.grad is None, torch.equal(before, net.weight)
    (True, False)
    >>> handle.detach()
    """
    if not callable(make_optimizer):
        raise TypeError(
            "make_optimizer: expected a function such as lambda p: torch.optim.Adam(p), found "
            f"{type(make_optimizer).__name__} {make_optimizer!r}"
        )
    infos = parameter_infos(model)
    for path, module in model.named_modules():
        if isinstance(module, DistributedDataParallel):
            raise ValueError(_reason_against_ddp(f"model: {path or 'all of it'}"))
    for one in transforms_of(transform):
        if one.granularity == "global":
            raise ValueError(
                f"transform: {one!r} needs all gradients at once, and in backward they are there "
                "one at a time; use znorm.attach, or a transform by tensor such as ClipNorm"
            )
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not named:
        raise ValueError("model: none of its parameters requires a gradient")
    for name, parameter in named:
        if _steps_in_backward(parameter):
            raise ValueError(f"{name}: steps in backward already; detach() that handle first")
        if parameter.grad is not None:
            raise ValueError(
                f"{name}: has a gradient already, to which the next backward would add; call "
                "model.zero_grad() first"
            )
    layout = Layout(named, transform, infos=[infos[p] for _, p in named])
    for entry in layout.entries:
        if entry.sharding is not None:
            raise TypeError(
                f"{entry.name}: is sharded (DTensor), and its processes complete their gradients "
                "at different times; use znorm.attach"
            )
    warn_if_idle([layout])
    optimizers = {name: _optimizer_of(name, p, make_optimizer) for name, p in named}
    for entry, (name, parameter) in zip(layout.entries, named, strict=True):
        if entry.selected:
            info = replace(infos[parameter], layers=entry.layers)
            Attachment(optimizers[name], _for_one(entry, layout), known={parameter: info})
    return BackwardStepping(model, optimizers)


class BackwardStepping:
    """A model whose backward steps; made by :func:`in_backward`.

    Parameters
    ----------
    model : torch.nn.Module
    optimizers : dict of str to torch.optim.Optimizer
        By the parameter's name, each of one parameter.
    """

    def __init__(self, model: nn.Module, optimizers: dict[str, Optimizer]) -> None:
        self.optimizers = optimizers
        self._parameters = {
            name: cast(Tensor, optimizer.param_groups[0]["params"][0])
            for name, optimizer in optimizers.items()
        }
        self._checked = -1  # the number of the backward that was looked at last
        self._handles: list[Any] = []
        self._steps: dict[str, Any] = {}  # handles of the hooks that step
        self._seen: dict[str, int] = {}  # what was behind each parameter
        self._model = weakref.ref(model)
        # The modules that hold each parameter, and under which key.
        self._places: dict[str, list[tuple[nn.Module, str]]] = {}
        self._told: set[Tensor] = set()
        _mark_scaled_losses()
        names: dict[Tensor, str] = {p: name for name, p in self._parameters.items()}
        for module in model.modules():
            parameter: Tensor
            for key, parameter in module.named_parameters(recurse=False):
                if parameter in names:
                    self._places.setdefault(names[parameter], []).append((module, key))
            if module is model or any(True for _ in module.parameters(recurse=False)):
                hook = _BeforeForward(self)
                self._handles.append(module.register_forward_pre_hook(hook))
        self._names = {
            (module, key): name for name, places in self._places.items() for module, key in places
        }
        for name, parameter in self._parameters.items():
            self._step_on(name, parameter)

    def _before_forward(self, module: nn.Module) -> None:
        if ddp_forward_runs():
            raise RuntimeError(_reason_against_ddp("in_backward: the model"))
        self._look_at(module)
        if module is self._model():
            # A module whose own forward is not called, as an attention layer's output projection,
            # is looked at too.
            for other in module.modules():
                if other is not module:
                    self._look_at(other)

    def _look_at(self, module: nn.Module) -> None:
        for key, parameter in parameters_in(module).items():
            if parameter is None:
                continue
            name = self._names.get((module, key))
            if name is None:
                self._tell_untrained(f"{type(module).__name__}.{key}", parameter)
                continue
            if parameter is not self._parameters[name]:
                if is_functional_call():
                    continue
                self._replace(name)
            elif identity_behind(parameter) != self._seen[name]:
                self._step_on(name, parameter)  # torch may have swapped what is behind it
            if parameter.grad is not None:
                raise RuntimeError(
                    f"{name}: has a gradient, to which the next backward would add; leave "
                    "gradients to in_backward, or set it to None"
                )

    def _tell_untrained(self, what: str, parameter: Tensor) -> None:
        known = parameter in self._told or _steps_in_backward(parameter)
        if known or not parameter.requires_grad:
            return
        self._told.add(parameter)
        warnings.warn(
            f"znorm: in_backward: {what} {tuple(parameter.shape)} requires a gradient, but was "
            "frozen or not there when in_backward was called: it is not trained; detach(), and "
            "call in_backward again",
            stacklevel=users_level(),
        )

    def _replace(self, name: str) -> None:
        """Step on the parameter that has come in the place of one, with its state.

        ``load_state_dict(assign=True)`` does so.
        """
        here = {parameters_in(module)[key] for module, key in self._places[name]}
        if len(here) != 1:
            raise RuntimeError(
                f"in_backward: {name} was shared by several modules and is not any more; "
                "detach(), and call in_backward again"
            )
        parameter = cast(Tensor, here.pop())
        optimizer = self.optimizers[name]
        before = self._parameters[name]
        optimizer.param_groups[0]["params"] = [parameter]
        if before in optimizer.state:
            optimizer.state[parameter] = optimizer.state.pop(before)
        self._parameters[name] = parameter
        self._step_on(name, parameter)

    def _step_on(self, name: str, parameter: Tensor) -> None:
        """Step as soon as the parameter's gradient is complete."""
        if name in self._steps:
            self._steps[name].remove()
        hook = _Step(self, self.optimizers[name])
        self._steps[name] = parameter.register_post_accumulate_grad_hook(hook)
        reset_accumulation_hooks(parameter)
        self._seen[name] = identity_behind(parameter)

    def _check_backward(self, parameter: Tensor) -> None:
        """Raise if the backward that runs now must not step."""
        backward = running_backward()
        if backward != self._checked:
            reason = _reason_against(_running_backwards())
            if reason is not None:
                parameter.grad = None
                raise RuntimeError(f"in_backward: {reason}")
            self._checked = backward

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError(
            "in_backward: its handle cannot be copied or pickled; save state_dict(), and call "
            "in_backward on a copy of the model, which is a plain one"
        )

    def receipt(self, *, reset: bool = False) -> dict[str, dict[str, float]]:
        """As :meth:`znorm.Attachment.receipt`, for all parameters.

        Parameters
        ----------
        reset : bool, default False
        """
        rows: dict[str, dict[str, float]] = {}
        for optimizer in self.optimizers.values():
            attachment = own_attachment(optimizer)
            if attachment is not None:
                rows.update(attachment.receipt(reset=reset))
        return rows

    def state_dict(self) -> dict[str, Any]:
        """Each optimizer's own state, by the parameter's name."""
        return {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave.

        Parameters
        ----------
        state : mapping of str to dict

        Raises
        ------
        ValueError
            If it is not of the same parameters; nothing is loaded then.
        """
        for problem, names in (
            ("lacks", self.optimizers.keys() - state.keys()),
            ("has the unknown", state.keys() - self.optimizers.keys()),
        ):
            if names:
                raise ValueError(f"state: {problem} {', '.join(sorted(names))}; nothing was loaded")
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state[name])

    def detach(self) -> None:
        """Let backward only compute gradients again; a second call does nothing."""
        for handle in (*self._handles, *self._steps.values()):
            handle.remove()
        for optimizer in self.optimizers.values():
            attachment = own_attachment(optimizer)
            if attachment is not None:
                attachment.detach()


class _BeforeForward:
    """A module's hook; a copy of the module, or what is loaded of it, has one that does nothing."""

    def __init__(self, stepping: BackwardStepping) -> None:
        self._stepping = stepping

    def __call__(self, module: nn.Module, inputs: Any) -> None:
        self._stepping._before_forward(module)

    def __reduce__(self) -> tuple[Any, ...]:
        # A function of the standard library that takes anything and does nothing: a model that was
        # saved can be loaded where this package is not.
        return getattr, (nullcontext(), "__exit__")


class _Step:
    """A parameter's hook: torch copies and pickles no such hooks."""

    def __init__(self, stepping: BackwardStepping, optimizer: Optimizer) -> None:
        self._stepping, self._optimizer = stepping, optimizer

    def __call__(self, parameter: Tensor) -> None:
        self._stepping._check_backward(parameter)
        try:
            self._optimizer.step()
        finally:
            parameter.grad = None


def _steps_in_backward(parameter: Tensor) -> bool:
    return any(isinstance(hook, _Step) for hook in accumulation_hooks(parameter).values())


def _optimizer_of(
    name: str, parameter: nn.Parameter, make_optimizer: Callable[[list[nn.Parameter]], Optimizer]
) -> Optimizer:
    optimizer = make_optimizer([parameter])
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            "make_optimizer: expected it to return a torch.optim.Optimizer, found "
            f"{type(optimizer).__name__}"
        )
    if unwrapped(optimizer) is not optimizer:
        raise TypeError(
            f"make_optimizer: {type(optimizer).__name__} wraps another optimizer; return the one "
            "inside"
        )
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if len(parameters) != 1 or parameters[0] is not parameter:
        raise ValueError(
            f"make_optimizer: expected an optimizer of the one parameter that it is given ({name}),"
            f" found one of {len(parameters)}; write lambda p: torch.optim.Adam(p)"
        )
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(
            f"make_optimizer: the step of {type(optimizer).__name__} needs a closure, which cannot "
            "be called within a backward; use znorm.attach"
        )
    if own_attachment(optimizer) is not None:
        raise ValueError(
            "make_optimizer: the optimizer has a transform attached already; give the transform "
            "to in_backward alone"
        )
    return optimizer


def _always(name: str, parameter: Tensor) -> bool:
    return True


def _for_one(entry: ParameterEntry, layout: Layout) -> Chain:
    """The transforms that act on one parameter, selecting it whatever it is.

    Rules are judged once, over the whole model: one that matches another parameter is not idle.
    """
    acting = (one for one, acts in zip(layout.transforms, entry.acts, strict=True) if acts)
    return Chain(tuple(one.with_select(((_always, True),)) for one in acting))


def _reason_against_ddp(what: str) -> str:
    return (
        f"{what} is wrapped in DistributedDataParallel, whose all-reduce comes after a step that "
        "is taken in backward, so that the processes would drift apart; use znorm.attach"
    )


def _reason_against(losses: Sequence[tuple[Tensor, ...]]) -> str | None:
    """The reason why this backward must not step, if there is one."""
    if len(losses) > 1:
        return (
            "this backward runs within another one, as reentrant checkpoints do, where the "
            "gradient of a shared parameter comes in several parts; use use_reentrant=False"
        )
    if any(_is_scaled(loss) for several in losses for loss in several):
        return (
            "the loss is scaled by a GradScaler, which can tell that a step overflowed only "
            "before it is taken; use znorm.attach, or bfloat16, which needs no scaler"
        )
    return None


def _running_backwards() -> list[tuple[Tensor, ...]]:
    """The losses of each backward that this one is part of, the innermost first."""
    # All threads, but each by itself: hooks of gradients on a GPU run in a thread of torch's own,
    # while the one that called backward waits.
    longest: list[tuple[Tensor, ...]] = []
    frames = sys._current_frames()
    here = frames.pop(threading.get_ident())
    for frame in (here, *frames.values()):
        if frame is not here and longest:
            break  # this thread's own, whatever others do
        longest = max(longest, running_losses(frame), key=len)
    return longest


def _mark_scaled_losses() -> None:
    """Make GradScaler leave a mark on the graph of what it scales; torch itself leaves none."""
    kinds = [torch.amp.GradScaler]
    for kind in kinds:
        kinds += kind.__subclasses__()
        if "scale" in vars(kind):
            _mark_losses_of(kind)


def _mark_losses_of(kind: Any) -> None:
    scale = kind.scale
    if hasattr(scale, _MARK):
        return

    @functools.wraps(scale)
    def marking(self: Any, outputs: Any) -> Any:
        scaled = scale(self, outputs)
        for output in (scaled,) if isinstance(scaled, Tensor) else scaled:
            if self.is_enabled() and isinstance(output, Tensor) and output.grad_fn is not None:
                metadata_of(output.grad_fn)[_MARK] = True
        return scaled

    setattr(marking, _MARK, True)
    kind.scale = marking


def _is_scaled(loss: Tensor) -> bool:
    """True if the mark is among the last operations that made the loss."""
    seen: set[Any] = set()
    nodes = [loss.grad_fn]
    while nodes and len(seen) < _LOOKED_AT:
        node = nodes.pop(0)
        if node is None or node in seen:
            continue
        if metadata_of(node).get(_MARK):
            return True
        seen.add(node)
        nodes += [following for following, _ in node.next_functions]
    return False
