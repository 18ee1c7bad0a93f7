"""Step in backward: each parameter is updated as its gradient completes, and the gradient freed."""

from __future__ import annotations

import gc
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from znorm.attachment import Attachment, attachment_of
from znorm.layout import Layout
from znorm.rows import Row
from znorm.selection import origins
from znorm.transforms.composition import Chain, Transform, links

__all__ = ["BackwardStepping", "in_backward"]


def in_backward(
    model: nn.Module,
    make_optimizer: Callable[[list[nn.Parameter]], Optimizer],
    transform: Transform | None = None,
) -> BackwardStepping:
    """Make ``loss.backward()`` transform, step and free each gradient as soon as it is complete.

    At no time are all gradients there together, which saves most of their memory. One backward is
    one step: gradients cannot be accumulated over several, and nothing that needs them all at
    once, such as clipping by their global norm, is possible. There is no ``optimizer.step()`` to
    call.

    Parameters
    ----------
    model : torch.nn.Module
        Its parameters that require a gradient are trained.
    make_optimizer : callable (list of one Parameter) -> torch.optim.Optimizer
        Called for each parameter, such as ``lambda p: torch.optim.Adam(p, lr=1e-3)``.
    transform : transform, optional
        Any that is not joint.

    Returns
    -------
    BackwardStepping
        Its ``optimizers`` are for schedulers, one for each.

    Raises
    ------
    TypeError, ValueError
        Where it would be wrong: under DistributedDataParallel, whose all-reduce comes after this
        step; for a joint transform; if a parameter has a gradient already; for an optimizer whose
        step needs a closure; and for what :func:`znorm.attach` refuses.
    RuntimeError
        From the first backward, if the loss is scaled by a GradScaler: what overflowed would be
        stepped on before it is known.

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
    known = origins(model)
    for path, module in model.named_modules():
        if isinstance(module, DistributedDataParallel):
            raise ValueError(_reason_against_ddp(f"model: {path or 'all of it'}"))
    for link in links(transform):
        if link.joint:
            raise ValueError(
                f"transform: {link!r} needs all gradients at once, and in backward they are there "
                "one at a time; use znorm.attach, or a transform by tensor such as ClipNorm"
            )
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not named:
        raise ValueError("model: none of its parameters requires a gradient")
    for name, parameter in named:
        if parameter.grad is not None:
            raise ValueError(
                f"{name}: has a gradient already, to which the next backward would add; call "
                "model.zero_grad() first"
            )
    layout = Layout(named, transform, origins=[known[id(p)] for _, p in named])
    optimizers = {name: _optimizer_of(name, p, make_optimizer) for name, p in named}
    for row, (name, parameter) in zip(layout.rows, named, strict=True):
        if row.selected:
            origin = replace(known[id(parameter)], layers=row.held)
            Attachment(optimizers[name], _for_one(row, layout), {id(parameter): origin})
    return BackwardStepping(model, optimizers)


class BackwardStepping:
    """A model whose backward steps; made by :func:`in_backward`.

    Attributes
    ----------
    optimizers : dict of str to torch.optim.Optimizer
        By the parameter's name, each of one parameter.
    """

    def __init__(self, model: nn.Module, optimizers: dict[str, Optimizer]) -> None:
        self.optimizers = optimizers
        self._checked = False
        self._handles: list[Any] = [model.register_forward_pre_hook(_refuse_ddp)]
        for optimizer in optimizers.values():
            parameter = optimizer.param_groups[0]["params"][0]
            self._handles.append(
                parameter.register_post_accumulate_grad_hook(self._hook_of(optimizer))
            )

    def _hook_of(self, optimizer: Optimizer) -> Callable[[Tensor], None]:
        def step(parameter: Tensor) -> None:
            if not self._checked:
                if _is_scaled_by_grad_scaler():
                    parameter.grad = None
                    raise RuntimeError(
                        "in_backward: the loss is scaled by a GradScaler, which could skip a step "
                        "that overflowed only before it is taken; use znorm.attach, or bfloat16, "
                        "which needs no scaler"
                    )
                self._checked = True
            optimizer.step()
            parameter.grad = None

        return step

    def receipt(self) -> dict[str, dict[str, float]]:
        """As :meth:`znorm.Attachment.receipt`, for all parameters."""
        found: dict[str, dict[str, float]] = {}
        for optimizer in self.optimizers.values():
            attachment = attachment_of(optimizer)
            if attachment is not None:
                found.update(attachment.receipt())
        return found

    def state_dict(self) -> dict[str, Any]:
        """Each optimizer's own state, by the parameter's name."""
        return {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave.

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
        for handle in self._handles:
            handle.remove()
        for optimizer in self.optimizers.values():
            attachment = attachment_of(optimizer)
            if attachment is not None:
                attachment.detach()


def _optimizer_of(
    name: str, parameter: nn.Parameter, make_optimizer: Callable[[list[nn.Parameter]], Optimizer]
) -> Optimizer:
    optimizer = make_optimizer([parameter])
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            "make_optimizer: expected it to return a torch.optim.Optimizer, found "
            f"{type(optimizer).__name__}"
        )
    held = [p for group in optimizer.param_groups for p in group["params"]]
    if len(held) != 1 or held[0] is not parameter:
        raise ValueError(
            f"make_optimizer: expected an optimizer of the one parameter that it is given ({name}),"
            f" found one of {len(held)}; write lambda p: torch.optim.Adam(p)"
        )
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(
            f"make_optimizer: the step of {type(optimizer).__name__} needs a closure, which cannot "
            "be called within a backward; use znorm.attach"
        )
    if attachment_of(optimizer) is not None:
        raise ValueError(
            "make_optimizer: the optimizer has a transform attached already; give the transform "
            "to in_backward alone"
        )
    return optimizer


def _always(name: str, parameter: Tensor) -> bool:
    return True


def _for_one(row: Row, layout: Layout) -> Chain:
    """The links that act on one parameter, selecting it whatever it is.

    Rules are judged once, over the whole model: one that matches another parameter is not idle.
    """
    acting = (link for link, acts in zip(layout.links, row.acts, strict=True) if acts)
    return Chain(tuple(replace(cast(Any, link), select=((_always, True),)) for link in acting))


def _refuse_ddp(module: nn.Module, inputs: Any) -> None:
    if DistributedDataParallel._get_active_ddp_module() is not None:
        raise RuntimeError(_reason_against_ddp("in_backward: the model"))


def _reason_against_ddp(what: str) -> str:
    return (
        f"{what} is wrapped in DistributedDataParallel, whose all-reduce comes after a step that "
        "is taken in backward, so that the processes would drift apart; use znorm.attach, or "
        "fully_shard (FSDP2)"
    )


def _is_scaled_by_grad_scaler() -> bool:
    """Whether the backward that is running began at a loss that a GradScaler has scaled.

    Nothing in torch says so. What tells is that a scaler has been used and that the loss is a
    product, as scaled ones are.
    """
    # type(), since isinstance would ask proxies among all these objects.
    used = any(
        issubclass(type(thing), torch.amp.GradScaler)
        and thing.is_enabled()
        and thing._scale is not None
        for thing in gc.get_objects()
    )
    return used and any(
        loss.grad_fn is not None and loss.grad_fn.name() == "MulBackward0"
        for loss in _losses_in_backward()
    )


def _losses_in_backward() -> Iterator[Tensor]:
    # All threads: hooks of gradients on a GPU run in one of its own.
    for frame in sys._current_frames().values():
        found: Any = frame
        while found is not None:
            if found.f_code is torch.autograd.backward.__code__:
                tensors = found.f_locals["tensors"]
                yield from (tensors,) if isinstance(tensors, Tensor) else tensors
            found = found.f_back
