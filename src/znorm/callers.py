"""What is going on further up the stack, where torch leaves no other sign of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import torch
from torch.optim import Optimizer

__all__ = [
    "frames",
    "inside_another_step",
    "makes_empty_state",
    "refuse_grad_scaler",
    "users_level",
]

_OPTIMIZER_FILE = Optimizer.profile_hook_step.__code__.co_filename
_PACKAGES = tuple(str(Path(file).parent) + "/" for file in (__file__, torch.__file__))


def inside_another_step(optimizer: Optimizer) -> bool:
    """Whether this is the ``super().step()`` of a subclass, whose own hooks have run already."""
    steps = 0
    for frame in frames():
        code = frame.f_code
        # torch runs the hooks of a step in a function of this name around it.
        if code.co_name == "wrapper" and code.co_filename == _OPTIMIZER_FILE:
            steps += frame.f_locals.get("self") is optimizer
            if steps == 2:
                return True
    return False


def refuse_grad_scaler() -> None:
    """Raise if a step with a closure is being taken by an enabled GradScaler.

    Raises
    ------
    RuntimeError
    """
    for frame in frames():
        # Of whatever optimizer: a wrapper hands the closure on to this one.
        is_scaler = frame.f_code is torch.amp.GradScaler.step.__code__
        if is_scaler and frame.f_locals["self"].is_enabled():
            raise RuntimeError(
                "closure: GradScaler cannot unscale what a closure computes, so that the step "
                "would be taken on scaled gradients; call scaler.step(optimizer) without a closure"
            )


def makes_empty_state(optimizer: Optimizer) -> bool:
    """Whether torch takes this step only to make states, which it then fills from a checkpoint.

    ``torch.distributed.checkpoint.state_dict`` does so, with gradients and a learning rate of 0.
    """
    module = sys.modules.get("torch.distributed.checkpoint.state_dict")
    if module is None or optimizer.state:
        return False
    made_by = getattr(module, "_init_optim_state", None)
    code = getattr(made_by, "__code__", None)
    return any(frame.f_code is code for frame in frames())


def users_level() -> int:
    """The ``stacklevel`` of a warning that names the line outside of this package and torch."""
    for level, frame in enumerate(frames()):
        # The first two are those of this function and of its iterator.
        if level > 1 and not frame.f_code.co_filename.startswith(_PACKAGES):
            return level - 1
    return 1


def frames() -> Iterator[FrameType]:
    """The frames of the stack, from this generator's own outwards."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        yield frame
        frame = frame.f_back
