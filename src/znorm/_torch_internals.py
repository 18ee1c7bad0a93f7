"""Private parts of torch, all of them: each with why it is needed.

torch has no public way to what is asked here. `tests/test_torch_internals.py` tries each part by
itself, so that a torch that changes one says which.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase as NormalizationBase
from torch.nn.modules.conv import _ConvNd as Convolution
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import stateless
from torch.optim import Optimizer

__all__ = [
    "SCALED_BY_STEP",
    "STEP_HOOKS",
    "Convolution",
    "NormalizationBase",
    "accumulation_hooks",
    "ddp_forward_runs",
    "frames",
    "identity_behind",
    "inside_another_step",
    "is_functional_call",
    "is_plain",
    "is_traced",
    "local_tensor",
    "made_before_forward",
    "makes_empty_state",
    "metadata_of",
    "parameters_in",
    "refuse_grad_scaler",
    "reset_accumulation_hooks",
    "running_backward",
    "running_losses",
    "runs_step_hooks",
    "step_is_hooked",
    "step_within_hooks",
    "submodules",
    "users_level",
    "version_of",
    "weight_normed",
]

# --- tensors ------------------------------------------------------------------------------------


def is_plain(tensor: Tensor) -> bool:
    """True if its elements lie where ``data_ptr()`` says; of a subclass that dispatches they don't.

    Fake tensors, DTensors and quantized ones are such. Kernels that take an address would write
    anywhere.
    """
    plain = type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__
    return plain and not tensor._is_zerotensor()


def is_traced() -> bool:
    """True if operations are for torch.compile or torch.func to see, which no value may be."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def identity_behind(tensor: Tensor) -> int:
    """The identity of the tensor behind a Python object, which can change.

    ``torch.utils.swap_tensors`` changes it, and hooks stay with what was there before.
    """
    return cast(int, cast(Any, tensor)._cdata)


def version_of(tensor: Tensor) -> int:
    """The number of times that a tensor has been written, as autograd counts it."""
    return tensor._version


def local_tensor(tensor: Tensor) -> Tensor:
    """The shard behind a DTensor, the same object each time.

    Of a parameter ``to_local`` makes a new view at each call, at a cost that a step would feel.
    """
    local: Any = cast(Any, tensor)._local_tensor
    if type(local) is not Tensor and hasattr(local, "trigger_wait"):
        local = local.trigger_wait()  # a collective that is still at work
    return cast(Tensor, local)


# --- modules ------------------------------------------------------------------------------------


def submodules(module: nn.Module) -> Mapping[str, nn.Module | None]:
    """The children of a module by name, each place of a shared one too.

    ``named_children`` leaves out what it has told already.
    """
    return module._modules


def parameters_in(module: nn.Module) -> Mapping[str, nn.Parameter | None]:
    """A module's own parameters by name, the same one under each of its names."""
    return module._parameters


def weight_normed(owner: nn.Module) -> set[str]:
    """The tensors that ``torch.nn.utils.weight_norm`` splits in NAME_g and NAME_v."""
    hooks = owner._forward_pre_hooks.values()
    return {getattr(hook, "name", "") for hook in hooks if type(hook).__name__ == "WeightNorm"}


def made_before_forward(owner: nn.Module) -> set[str]:
    """The tensors that pruning and the old spectral norm make of NAME_orig before each forward."""
    names: set[str] = set()
    for hook in owner._forward_pre_hooks.values():
        if any(kind.__name__ == "BasePruningMethod" for kind in type(hook).__mro__):
            names.add(getattr(hook, "_tensor_name", ""))
        elif type(hook).__name__ == "SpectralNorm":
            names.add(getattr(hook, "name", ""))
    return names


def is_functional_call() -> bool:
    """True if torch has put other tensors in the modules' place for one call of the model."""
    code = stateless._functional_call.__code__
    return any(frame.f_code is code for frame in frames())


def ddp_forward_runs() -> bool:
    """True if the forward of a DistributedDataParallel is going on."""
    return DistributedDataParallel._get_active_ddp_module() is not None


# --- backward -----------------------------------------------------------------------------------


def accumulation_hooks(parameter: Tensor) -> Mapping[int, Any]:
    """The hooks of ``register_post_accumulate_grad_hook``, which cannot be listed otherwise."""
    return getattr(parameter, "_post_accumulate_grad_hooks", None) or {}


def reset_accumulation_hooks(parameter: Tensor) -> None:
    """Set the hooks anew: of a swapped tensor torch has kept the dict, and forgotten that."""
    hooks = cast(Any, parameter)._post_accumulate_grad_hooks
    cast(Any, parameter)._post_accumulate_grad_hooks = hooks


def running_backward() -> int:
    """The number of the backward that runs in this thread, -1 if none does."""
    return torch._C._current_graph_task_id()


def metadata_of(node: Any) -> dict[Any, Any]:
    """A dict that lives as long as a node of autograd's graph."""
    return cast("dict[Any, Any]", node.metadata)


# --- optimizers ---------------------------------------------------------------------------------


def step_is_hooked(step: Any) -> bool:
    """True if torch has put the layer that runs hooks round a function."""
    return bool(getattr(step, "hooked", False))


def step_within_hooks(step: Callable[..., Any]) -> Callable[..., Any]:
    """A step of torch's without the layer that runs hooks, for a caller that has run them."""
    return cast(Any, step).__wrapped__ if step_is_hooked(step) else step


def runs_step_hooks(optimizer: Optimizer) -> bool:
    """True if torch has put its hooks around the step, as it does for what it initializes."""
    hooked = step_is_hooked(getattr(type(optimizer), "step", None))
    return hooked and hasattr(optimizer, "_optimizer_step_pre_hooks")


# The attributes in which an optimizer keeps its own hooks.
STEP_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")

# The attribute by which an optimizer says that its step unscales by itself: GradScaler then hands
# it the loss scale, and waits for nothing.
SCALED_BY_STEP = "_step_supports_amp_scaling"


# --- the stack, where torch leaves no other sign of what is going on ------------------------------

_OPTIMIZER_FILE = Optimizer.profile_hook_step.__code__.co_filename
_PACKAGES = tuple(str(Path(file).parent) + "/" for file in (__file__, torch.__file__))


def inside_another_step(optimizer: Optimizer) -> bool:
    """True if this is the ``super().step()`` of a subclass, whose own hooks have run already."""
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
    """True if torch takes this step only to make states, which it then fills from a checkpoint.

    ``torch.distributed.checkpoint.state_dict`` does so, with gradients and a learning rate of 0.
    """
    module = sys.modules.get("torch.distributed.checkpoint.state_dict")
    if module is None or optimizer.state:
        return False
    made_by = getattr(module, "_init_optim_state", None)
    code = getattr(made_by, "__code__", None)
    return any(frame.f_code is code for frame in frames())


def running_losses(frame: FrameType) -> list[tuple[Tensor, ...]]:
    """The tensors of each call of ``torch.autograd.backward`` from this frame outwards."""
    losses: list[tuple[Tensor, ...]] = []
    outer: FrameType | None = frame
    while outer is not None:
        if outer.f_code is torch.autograd.backward.__code__:
            tensors = outer.f_locals["tensors"]
            losses.append((tensors,) if isinstance(tensors, Tensor) else tuple(tensors))
        outer = outer.f_back
    return losses


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
