"""Optimizers inside of others: to which of them a transform is to be attached.

A transform runs in torch's hooks, around the step of the very optimizer that updates. What wraps
an optimizer often takes its place without running hooks of its own: attached to the wrapper, a
transform would never run, without a word.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from znorm._torch_internals import frames, runs_step_hooks, step_is_hooked, users_level

__all__ = ["sharder_of", "unwrapped", "within"]

# Where Lightning, Fabric, accelerate and others keep the optimizer whose step they call.
_KNOWN = ("optimizer", "_optimizer")

# What gives an optimizer of its own one process's share: of whole parameters, or of a flat vector.
_SHARES_PARAMETERS = "ZeroRedundancyOptimizer"
_FLATTENS = (
    "BF16_Optimizer",
    "DeepSpeedZeroOptimizer",
    "DeepSpeedZeroOptimizer_Stage3",
    "FP16_Optimizer",
)


def unwrapped(optimizer: Any) -> Optimizer:
    """The optimizer whose step updates: what is given, or what is inside of it.

    Raises
    ------
    TypeError
        For what is no optimizer; for what wraps one in a way that is not known, with the name of
        the attribute to attach to; for a sharded one.
    """
    while True:
        kind = type(optimizer).__name__
        if _is_a(optimizer, _FLATTENS):
            raise TypeError(f"optimizer: {_reason_against_flat(kind)}")
        if _is_a(optimizer, (_SHARES_PARAMETERS,)):
            if getattr(optimizer, "_overlap_with_ddp", False):
                raise TypeError(
                    f"optimizer: a {kind} with overlap_with_ddp=True steps in backward, before a "
                    "transform could run; leave that option out"
                )
            return optimizer  # type: ignore[no-any-return]
        inside = within(optimizer)
        if not inside:
            break
        inner = next((inside[name] for name in _KNOWN if name in inside), None)
        if inner is None:
            raise TypeError(
                f"optimizer: {kind} wraps another one, whose step is what updates; attach to the "
                f"optimizer inside, .{next(iter(inside))}"
            )
        optimizer = inner
    if not isinstance(optimizer, Optimizer):
        raise TypeError(_no_optimizer(optimizer))
    if not runs_step_hooks(optimizer):
        raise TypeError(
            f"optimizer: the step of {kind} runs no hooks of torch's, so that a transform would "
            "never run; let its __init__ call super().__init__(params, defaults), or attach to the "
            "optimizer inside, if it holds one"
        )
    replaced = vars(optimizer).get("step")
    if replaced is not None and not step_is_hooked(replaced):
        warnings.warn(
            f"znorm: the step of this {kind} has been replaced by another, which may not run the "
            "hooks; see after the first step whether the attachment's receipt() is empty",
            stacklevel=users_level(),
        )
    return optimizer


def sharder_of(optimizer: Optimizer, *, thorough: bool = False) -> Any | None:
    """The wrapper that made this optimizer for one process's share of the parameters, if any.

    Parameters
    ----------
    optimizer : Optimizer
    thorough : bool, default False
        Whether to look even where torch.distributed is not in use: it takes tens of milliseconds.

    Raises
    ------
    TypeError
        If that keeps flat vectors, in which layers are no longer apart.
    """
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not (distributed or thorough):
        return None
    for owner in _owners(optimizer):
        if _is_a(owner, _FLATTENS):
            raise TypeError(f"optimizer: {_reason_against_flat(type(owner).__name__)}")
        if _is_a(owner, (_SHARES_PARAMETERS,)):
            return owner
    return None


def _owners(optimizer: Optimizer) -> Iterator[Any]:
    # Nothing leads from an optimizer to what holds it but the stack, while it is being made, and
    # the garbage collector.
    for frame in frames():
        if frame.f_code.co_varnames[:1] == ("self",):
            yield frame.f_locals.get("self")
    for referrer in gc.get_referrers(optimizer):
        yield referrer
        if isinstance(referrer, dict):
            for owner in gc.get_referrers(referrer):
                if _is_a(owner, (*_FLATTENS, _SHARES_PARAMETERS)) and vars(owner) is referrer:
                    yield owner


def _is_a(thing: Any, names: tuple[str, ...]) -> bool:
    """True if it is of a class of one of these names: importing them would cost seconds."""
    return any(kind.__name__ in names for kind in type(thing).__mro__)


def within(optimizer: Any) -> dict[str, Optimizer]:
    """The optimizers that it wraps, by the attribute that holds them, alone or among others.

    What is torch's own in all may hold one of other parameters, which has nothing to do with it.
    """
    if isinstance(optimizer, type | nn.Module | list | tuple):
        return {}
    independent = (
        isinstance(optimizer, Optimizer)
        and runs_step_hooks(optimizer)
        and not _is_a(optimizer, (_SHARES_PARAMETERS,))  # whose share can be none at all
    )
    parameters = _parameters(optimizer) if independent else set()
    inside: dict[str, Optimizer] = {}
    for name, value in getattr(optimizer, "__dict__", {}).items():
        several = value.values() if isinstance(value, dict) else value
        for one in several if isinstance(value, dict | list | tuple) else (value,):
            if not isinstance(one, Optimizer) or one is optimizer:
                continue
            if not independent or parameters & _parameters(one):
                inside.setdefault(name, one)
    return inside


def _parameters(optimizer: Optimizer) -> set[int]:
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def _reason_against_flat(kind: str) -> str:
    return (
        f"{kind} (DeepSpeed) steps on flat partitions, in which layers are no longer apart; of "
        "sharded parameters those of FSDP2 (fully_shard) and other DTensors are supported"
    )


def _no_optimizer(thing: Any) -> str:
    hint = ""
    if isinstance(thing, nn.Module):
        hint = "; the model goes in model="
    elif isinstance(thing, list | tuple):
        hint = "; attach to each of several by itself"
    kind = thing.__name__ if isinstance(thing, type) else type(thing).__name__
    return f"optimizer: expected a torch.optim.Optimizer, found {kind}{hint}"
