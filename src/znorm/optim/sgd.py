"""SGD that transforms each gradient before the update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from znorm.attachment import Attachment
from znorm.kernels import reference
from znorm.kernels.base import Trial, UpdateRule
from znorm.optim.step import gradients_of, prepare, shown, take_step, with_options
from znorm.step_hooks import own_attachment
from znorm.transforms.base import Transform

__all__ = ["SGD", "SGD_RULE"]


def _init_state(group: dict[str, Any], state: dict[str, Any], parameter: Tensor) -> bool:
    initialized = state.get("momentum_buffer") is not None
    if group["momentum"] and not initialized:
        state["momentum_buffer"] = torch.zeros_like(parameter)
    return initialized


def _hyperparameters(group: dict[str, Any]) -> list[Any]:
    """lr, momentum, dampening, weight decay, Nesterov's momentum or not, maximize or not."""
    names = ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize")
    return [group[name] for name in names]


def _states_of(group: dict[str, Any]) -> tuple[str, ...]:
    return ("momentum_buffer",) if group["momentum"] else ()


SGD_RULE = UpdateRule(
    name="sgd",
    state_names=("momentum_buffer",),
    counts_steps=False,
    init_state=_init_state,
    hyperparameters=_hyperparameters,
    states_of=_states_of,
    # The first step sets the buffer to the gradient: with Nesterov's momentum a step is 1.5 g.
    trial=Trial(
        group={
            "lr": 2.0,
            "momentum": 0.5,
            "dampening": 0.0,
            "weight_decay": 0.0,
            "nesterov": True,
            "maximize": False,
        },
        gradient=(2.0, -2.0, 6.0, 14.0),
        weights=(-6.0, 6.0, -18.0, -42.0),
    ),
)


class SGD(torch.optim.SGD):
    """``torch.optim.SGD`` with a gradient transform.

    The transform acts before weight decay and momentum see the gradient. ``state_dict`` is
    torch's own: checkpoints load into either class.

    Parameters
    ----------
    params, lr, momentum, dampening, weight_decay, nesterov, **options
        As in ``torch.optim.SGD``; ``options`` are its keyword arguments, ``fused`` as in
        :class:`Adam`.
    transform : transform, optional
        Such as ``znorm.ZNorm()``; without one this is plain SGD.
    model : torch.nn.Module, optional
        Gives names to parameters, and tells normalizations, transposed convolutions and the packed
        weights of attention.
    module : torch.nn.Module, optional
        Another spelling of ``model``, for callers that keep that name for themselves, as Hugging
        Face's ``Trainer`` does in ``optimizer_cls_and_kwargs``.
    stochastic_rounding : bool, default False
        Whether bfloat16 weights and their momentum are updated in float32 and rounded up or down
        at random, so that small updates are not lost. ``torch.manual_seed`` repeats it. Wider
        weights have nothing to round. Not together with ``foreach``, ``fused`` or
        ``differentiable``.

    Raises
    ------
    TypeError, ValueError
        As ``torch.optim.SGD`` and :func:`znorm.attach` do.
    RuntimeError
        If ``fused=True`` cannot be honoured, saying why.

    Examples
    --------
    >>> import torch, znorm
    >>> net = torch.nn.Linear(4, 2)
    >>> optimizer = znorm.optim.SGD(net.parameters(), lr=0.1, transform=znorm.ZNorm(), model=net)
    >>> net(torch.randn(8, 4)).square().mean().backward()
    >>> optimizer.step()
    """

    stochastic_rounding: bool
    # The step transforms gradients itself: the hook of an attachment leaves it to that.
    transforms_in_step = True

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        transform: Transform | None = None,
        model: nn.Module | None = None,
        module: nn.Module | None = None,
        stochastic_rounding: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(params, lr, momentum, dampening, weight_decay, nesterov, **options)
        prepare(self, SGD_RULE, transform, model, module, stochastic_rounding)

    @property
    def attachment(self) -> Attachment | None:
        """The transform at work here."""
        return own_attachment(self)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step, as torch's own; with stochastic rounding, in float32."""
        return take_step(self, closure, SGD_RULE, torch.optim.SGD.step, self._step_in_float32)

    def __repr__(self) -> str:
        return shown(self, SGD_RULE, super().__repr__())

    def __getstate__(self) -> dict[str, Any]:
        return with_options(self, super().__getstate__())

    @torch.no_grad()
    def _step_in_float32(self) -> None:
        for group, parameter, gradient, found_inf in gradients_of(self):
            buffer, first = None, False
            if group["momentum"]:
                state = self.state[parameter]
                first = state.get("momentum_buffer") is None
                if first and found_inf is not None and float(found_inf):
                    continue  # once: a first step that is skipped leaves no buffer behind
                if first:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                buffer = state["momentum_buffer"]
            reference.sgd_(
                parameter,
                gradient,
                buffer,
                first=first,
                lr=group["lr"],
                momentum=group["momentum"],
                dampening=group["dampening"],
                weight_decay=group["weight_decay"],
                nesterov=group["nesterov"],
                maximize=group["maximize"],
                found_inf=found_inf,
            )
