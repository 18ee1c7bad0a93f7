"""Adam and AdamW that transform each gradient before the update."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from znorm.attachment import Attachment
from znorm.kernels import reference
from znorm.kernels.base import Trial, UpdateRule
from znorm.optim.step import gradients_of, prepare, shown, take_step, with_options
from znorm.step_hooks import own_attachment
from znorm.transforms.base import Transform

__all__ = ["ADAMW_RULE", "ADAM_RULE", "Adam", "AdamW"]


def _fill(state: dict[str, Any], parameter: Tensor, amsgrad: bool) -> None:
    """Fill an empty state as torch's own, so that checkpoints load into either."""
    state["step"] = torch.tensor(0.0, dtype=torch.float32, device="cpu")
    state["exp_avg"] = torch.zeros_like(parameter)
    state["exp_avg_sq"] = torch.zeros_like(parameter)
    if amsgrad:
        state["max_exp_avg_sq"] = torch.zeros_like(parameter)


def _is_decoupled(group: dict[str, Any], default: bool) -> bool:
    """True if a group's weight decay is AdamW's; torch 2.6 has no such option, but two classes."""
    return bool(group.get("decoupled_weight_decay", default))


def _init_state(group: dict[str, Any], state: dict[str, Any], parameter: Tensor) -> bool:
    initialized = bool(state)
    if not initialized:
        _fill(state, parameter, group["amsgrad"])
    # Beside the parameter, as with torch's fused step: no device is waited for.
    state["step"] = state["step"].to(parameter.device)
    return initialized


def _hyperparameters(group: dict[str, Any], *, decoupled: bool) -> list[Any]:
    """lr, beta1, beta2, eps, weight decay, whether that is decoupled, whether to maximize."""
    beta1, beta2 = group["betas"]  # as torch's own step, which raises for any other number of them
    return [
        group["lr"],
        beta1,
        beta2,
        group["eps"],
        group["weight_decay"],
        _is_decoupled(group, decoupled),
        group["maximize"],
    ]


def _rule(*, decoupled: bool) -> UpdateRule:
    return UpdateRule(
        name="adam",
        state_names=("exp_avg", "exp_avg_sq"),
        counts_steps=True,
        init_state=_init_state,
        hyperparameters=partial(_hyperparameters, decoupled=decoupled),
        unsupported=("amsgrad",),
        # Without averages a step is g / (|g| + eps).
        trial=Trial(
            group={
                "lr": 1.0,
                "betas": (0.0, 0.0),
                "eps": 2.0,
                "weight_decay": 0.0,
                "amsgrad": False,
                "maximize": False,
            },
            gradient=(2.0, -2.0, 6.0, 14.0),
            weights=(-0.5, 0.5, -0.75, -0.875),
        ),
    )


ADAM_RULE, ADAMW_RULE = _rule(decoupled=False), _rule(decoupled=True)


class Adam(torch.optim.Adam):
    """``torch.optim.Adam`` with a gradient transform; with ZNorm, the paper's Algorithm 1.

    The transform acts before weight decay and momentum see the gradient. ``state_dict`` is
    torch's own: checkpoints load into either class.

    Parameters
    ----------
    params, lr, betas, eps, weight_decay, amsgrad, **options
        As in ``torch.optim.Adam``; ``options`` are its keyword arguments. ``fused=None`` takes
        the best that works: the transform within the update where compiled kernels serve all
        parameters, else in place before torch's own step. True asks for the former.
    transform : transform, optional
        Such as ``znorm.ZNorm()``; without one this is plain Adam.
    model : torch.nn.Module, optional
        Gives names to parameters, and tells normalizations, transposed convolutions and the packed
        weights of attention.
    module : torch.nn.Module, optional
        Another spelling of ``model``, for callers that keep that name for themselves, as Hugging
        Face's ``Trainer`` does in ``optimizer_cls_and_kwargs``.
    stochastic_rounding : bool, default False
        Whether bfloat16 weights and their averages are updated in float32 and rounded up or down
        at random, so that small updates are not lost. ``torch.manual_seed`` repeats it. Wider
        weights have nothing to round. Not together with ``foreach``, ``fused``, ``capturable`` or
        ``differentiable``.

    Raises
    ------
    TypeError, ValueError
        As ``torch.optim.Adam`` and :func:`znorm.attach` do.
    RuntimeError
        If ``fused=True`` cannot be honoured, saying why.

    References
    ----------
    Yun and Kim, arXiv 2408.01215, Algorithm 1. Kingma and Ba, arXiv 1412.6980.

    Examples
    --------
    >>> import torch, znorm
    >>> net = torch.nn.Linear(4, 2)
    >>> optimizer = znorm.optim.Adam(net.parameters(), lr=1e-3, transform=znorm.ZNorm(), model=net)
    >>> net(torch.randn(8, 4)).square().mean().backward()
    >>> optimizer.step()
    >>> optimizer.attachment.describe().rows[0]["transformed"]
    True
    """

    stochastic_rounding: bool
    # The step transforms gradients itself: the hook of an attachment leaves it to that.
    transforms_in_step = True

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        transform: Transform | None = None,
        model: nn.Module | None = None,
        module: nn.Module | None = None,
        stochastic_rounding: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, **options)
        prepare(self, ADAM_RULE, transform, model, module, stochastic_rounding)

    @property
    def attachment(self) -> Attachment | None:
        """The transform at work here."""
        return own_attachment(self)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step, as torch's own; with stochastic rounding, in float32."""
        rounded = partial(_step_in_float32, self, decoupled=False)
        return take_step(self, closure, ADAM_RULE, torch.optim.Adam.step, rounded)

    def __repr__(self) -> str:
        return shown(self, ADAM_RULE, super().__repr__())

    def __getstate__(self) -> dict[str, Any]:
        return with_options(self, super().__getstate__())


class AdamW(torch.optim.AdamW):
    """``torch.optim.AdamW`` with a gradient transform; the decay does not see the transform.

    Parameters
    ----------
    params, lr, betas, eps, weight_decay, amsgrad, **options
        As in ``torch.optim.AdamW``; ``options`` are its keyword arguments, ``fused`` as in
        :class:`Adam`.
    transform : transform, optional
        Such as ``znorm.ZNorm()``; without one this is plain AdamW.
    model : torch.nn.Module, optional
        Gives names to parameters, and tells normalizations, transposed convolutions and the packed
        weights of attention.
    module : torch.nn.Module, optional
        Another spelling of ``model``, for callers that keep that name for themselves, as Hugging
        Face's ``Trainer`` does in ``optimizer_cls_and_kwargs``.
    stochastic_rounding : bool, default False
        Whether bfloat16 weights and their averages are updated in float32 and rounded up or down
        at random, so that small updates are not lost. ``torch.manual_seed`` repeats it. Wider
        weights have nothing to round. Not together with ``foreach``, ``fused``, ``capturable`` or
        ``differentiable``.

    Raises
    ------
    TypeError, ValueError
        As ``torch.optim.AdamW`` and :func:`znorm.attach` do.
    RuntimeError
        If ``fused=True`` cannot be honoured, saying why.

    References
    ----------
    Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.

    Examples
    --------
    >>> import torch, znorm
    >>> net = torch.nn.Linear(4, 2)
    >>> optimizer = znorm.optim.AdamW(net.parameters(), lr=1e-3, transform=znorm.ZNorm())
    """

    stochastic_rounding: bool
    # The step transforms gradients itself: the hook of an attachment leaves it to that.
    transforms_in_step = True

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        transform: Transform | None = None,
        model: nn.Module | None = None,
        module: nn.Module | None = None,
        stochastic_rounding: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, **options)
        prepare(self, ADAMW_RULE, transform, model, module, stochastic_rounding)

    @property
    def attachment(self) -> Attachment | None:
        """The transform at work here."""
        return own_attachment(self)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step, as torch's own; with stochastic rounding, in float32."""
        rounded = partial(_step_in_float32, self, decoupled=True)
        return take_step(self, closure, ADAMW_RULE, torch.optim.AdamW.step, rounded)

    def __repr__(self) -> str:
        return shown(self, ADAMW_RULE, super().__repr__())

    def __getstate__(self) -> dict[str, Any]:
        return with_options(self, super().__getstate__())


@torch.no_grad()
def _step_in_float32(optimizer: Optimizer, *, decoupled: bool) -> None:
    for group, parameter, gradient, found_inf in gradients_of(optimizer):
        state = optimizer.state[parameter]
        if not state:
            _fill(state, parameter, group["amsgrad"])
        reference.adam_(
            parameter,
            gradient,
            state["exp_avg"],
            state["exp_avg_sq"],
            _maximum(state, group),
            state["step"],
            lr=group["lr"],
            betas=cast(tuple[float, float], group["betas"]),
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            decoupled=_is_decoupled(group, decoupled),
            maximize=group["maximize"],
            found_inf=found_inf,
        )


def _maximum(state: dict[str, Any], group: dict[str, Any]) -> Tensor | None:
    """The state that AMSGrad adds, where it is asked for.

    Raises
    ------
    ValueError
        If it was not when the state was made: torch's own step fails then, too.
    """
    if not group["amsgrad"]:
        return None
    maximum: Tensor | None = state.get("max_exp_avg_sq")
    if maximum is None:
        raise ValueError(
            "Adam: amsgrad=True was set after the first step, and the state has no max_exp_avg_sq; "
            "set it before, or make a new optimizer"
        )
    return maximum
