"""Parameters: their names, the modules that own them, and what those tell of them.

Names come from ``model=``, else from the optimizer's named parameters. They are told without the
prefixes of what wraps a model (``module.``, ``_orig_mod.``, ``_forward_module.``), which depend on
how a script is launched.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from znorm._torch_internals import (
    Convolution,
    NormalizationBase,
    made_before_forward,
    submodules,
    weight_normed,
)
from znorm.layers import Layers

__all__ = [
    "NORMALIZATIONS",
    "ParameterInfo",
    "infos_from_names",
    "labels",
    "parameter_infos",
    "why_none_belongs",
]

NORMALIZATIONS: tuple[type[nn.Module], ...] = (
    NormalizationBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)
TRANSPOSED: tuple[type[nn.Module], ...] = (
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
# Modules whose weights of these names have their output channels along dim 0. A name that ends in
# "*" is a beginning.
_OUTPUT_FIRST: tuple[tuple[tuple[type[nn.Module], ...], tuple[str, ...]], ...] = (
    ((nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag, Convolution), ("weight",)),
    ((nn.RNNBase, nn.RNNCellBase), ("weight_*",)),
    ((nn.MultiheadAttention,), ("in_proj_weight", "q_proj_*", "k_proj_*", "v_proj_*")),
)

# Attributes under which wrappers keep what they wrap. "module" is a name that a model may have
# itself, so that it counts in these classes alone.
_WRAPPED = ("_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_WRAPPED_AS_MODULE = (
    "AveragedModel",
    "DataParallel",
    "DeepSpeedEngine",
    "DistributedDataParallel",
    "FullyShardedDataParallel",
)


@dataclass(frozen=True)
class ParameterInfo:
    """The facts that are known of a parameter.

    Parameters
    ----------
    name : str, optional
        Its name without the prefixes of wrappers, if it has one.
    aliases : tuple of str
        Other names of it: with those prefixes, and where modules share it.
    module : type, optional
        The type of the module that owns it, if the model is known.
    output_dim : int, optional
        The dim that numbers output channels; None: not known, and dim 0 is assumed.
    transposed : int, default 0
        The groups of a transposed convolution whose weight it is; 0 for all other parameters.
    layers : Layers, optional
        The layers that it holds, if the module packs several in one parameter.
    magnitude : bool, default False
        Whether it is the magnitude of a weight norm: a vector in the shape of a weight.
    outside : bool, default False
        Whether the model is known, and the parameter is none of it.
    """

    name: str | None = None
    aliases: tuple[str, ...] = ()
    module: type[nn.Module] | None = None
    output_dim: int | None = None
    transposed: int = 0
    layers: Layers | None = None
    magnitude: bool = False
    outside: bool = False

    def __deepcopy__(self, memo: Any) -> ParameterInfo:
        return self

    def __getstate__(self) -> dict[str, Any]:
        # A class that was made inside a function cannot be pickled: its nearest base that can
        # tells as much about its parameters.
        kinds = [] if self.module is None else self.module.__mro__
        importable = (kind for kind in kinds if _is_importable(kind))
        return {**self.__dict__, "module": next(importable, None)}


def _is_importable(kind: type) -> bool:
    place: Any = sys.modules.get(kind.__module__)
    for name in kind.__qualname__.split("."):
        place = getattr(place, name, None)
    return place is kind


def parameter_infos(model: nn.Module) -> dict[Tensor, ParameterInfo]:
    """For each parameter of ``model``: its first name, and what the module that owns it tells.

    Parameters are held as long as the dict is: nothing may refer to them weakly, since torch swaps
    no tensor that has a weak reference.

    Raises
    ------
    TypeError
        If ``model`` is not a module.
    ValueError
        If a part of it is wrapped in FSDP1.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, found {type(model).__name__}")
    infos: dict[Tensor, ParameterInfo] = {}
    names = {"": ""}
    kinds = {"": type(model).__name__}
    for path, module in model.named_modules():
        kind = type(module).__name__
        # By name: importing it would load all of torch.distributed.
        if kind == "FullyShardedDataParallel":
            raise ValueError(
                f"model: {path or 'all of it'} is wrapped in FullyShardedDataParallel (FSDP1), "
                "whose flat shards do not keep layers apart; shard it by FSDP2 (fully_shard)"
            )
        parent, _, last = path.rpartition(".")
        if path:
            wrapped = _is_wrapped_as(last, kinds[parent])
            names[path] = names[parent] if wrapped else _joined(names[parent], last)
            kinds[path] = kind
        owner, tensor = module, ""
        if isinstance(module, ParametrizationList):
            tensor = last
            owner = model.get_submodule(path.rpartition("parametrizations")[0].rstrip("."))
        for key, parameter in module.named_parameters(recurse=False):
            name, path_ = _joined(names[path], key), _joined(path, key)
            known = infos.get(parameter)
            if known is not None:
                aliases = dict.fromkeys((*known.aliases, name, path_))
                infos[parameter] = replace(known, aliases=tuple(aliases))
                continue
            role = _role_in_parametrization(module, key, tensor) if tensor else _role(owner, key)
            infos[parameter] = ParameterInfo(
                name,
                () if path_ == name else (path_,),
                type(owner),
                _output_dim(owner, role, parameter),
                _transposed(owner, parameter),
                _packed(owner, role, last),
                role == _MAGNITUDE,
            )
    for start, alias in _shared_modules(model):
        for parameter, info in infos.items():
            full = (info.aliases or (info.name or "",))[0]
            if full.startswith(f"{start}."):
                another = alias + full.removeprefix(start)
                infos[parameter] = replace(info, aliases=(*info.aliases, another))
    return infos


def _shared_modules(model: nn.Module) -> list[tuple[str, str]]:
    """For each module that stands at several places the first one, and each of the others."""
    first = {module: path for path, module in model.named_modules()}
    return [
        (first[child], _joined(path, name))
        for module, path in first.items()
        for name, child in submodules(module).items()
        if child is not None and first[child] not in ("", _joined(path, name))
    ]


def infos_from_names(names: Sequence[str | None]) -> list[ParameterInfo]:
    """The facts that names alone tell: those of a wrapped model's parameters all begin alike.

    >>> [info.name for info in infos_from_names(["module._orig_mod.a", "module.b"])]
    ['a', 'b']
    """
    bare = [
        name and ".".join(part for part in name.split(".") if part not in _WRAPPED)
        for name in names
    ]
    while bare and all(name is not None and name.startswith("module.") for name in bare):
        bare = [cast(str, name).removeprefix("module.") for name in bare]
    infos = []
    for short, full in zip(bare, names, strict=True):
        if short is None or full is None:
            infos.append(ParameterInfo())
            continue
        # The old form of weight norm says by its names what it is.
        magnitude = full.endswith("weight_g") and f"{full[:-1]}v" in names
        aliases = () if short == full else (full,)
        infos.append(ParameterInfo(short, aliases, magnitude=magnitude))
    return infos


def labels(groups: Sequence[Sequence[Tensor]], infos: Sequence[ParameterInfo]) -> list[str]:
    """The label of each parameter in messages: its name, or its place among an optimizer's groups.

    Parameters
    ----------
    groups : sequence of sequences of Tensor
        An optimizer's parameters.
    infos : sequence of ParameterInfo
        Of all of them, in that order.
    """
    places = [
        (number, position, parameter)
        for number, group in enumerate(groups)
        for position, parameter in enumerate(group)
    ]
    often = Counter(info.name for info in infos)
    in_group = Counter(
        (number, info.name) for info, (number, *_) in zip(infos, places, strict=True)
    )
    made = []
    for info, (number, position, parameter) in zip(infos, places, strict=True):
        if info.name is None:
            made.append(f"group {number}, parameter {position} {tuple(parameter.shape)}")
            continue
        # Groups made of several models' named parameters may share names.
        label = info.name if often[info.name] == 1 else f"group {number}: {info.name}"
        if in_group[number, info.name] > 1:
            label += f", parameter {position}"
        made.append(label)
    return made


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _is_wrapped_as(name: str, kind: str) -> bool:
    """True if a module of that class keeps what it wraps under that name."""
    return name in _WRAPPED or (name == "module" and kind in _WRAPPED_AS_MODULE)


# What stands for the name of a weight norm's magnitude.
_MAGNITUDE = "magnitude of a weight norm"


def _role_in_parametrization(module: nn.Module, key: str, tensor: str) -> str:
    """The tensor of the owner that a parameter of a parametrization stands for.

    One original is the tensor before it is parametrized. Of several nothing is known, but for
    weight norm's: a magnitude, and a direction in the shape of the weight.
    """
    if key == "original":
        return tensor
    if any(type(part).__name__ == "_WeightNorm" for part in module.children()):
        return _MAGNITUDE if key == "original0" else tensor
    return key


def _role(owner: nn.Module, key: str) -> str:
    """The tensor of a module that a parameter stands for, what it is made into seen through."""
    for tensor in weight_normed(owner):
        if key == f"{tensor}_g":
            return _MAGNITUDE
        if key == f"{tensor}_v":
            return tensor
    if key.endswith("_orig") and key.removesuffix("_orig") in made_before_forward(owner):
        return key.removesuffix("_orig")
    return key


def _output_dim(owner: nn.Module, role: str, parameter: Tensor) -> int | None:
    if _transposed(owner, parameter) or (role == "weight" and _is_input_first(owner, parameter)):
        return 1
    for kinds, names in _OUTPUT_FIRST:
        if isinstance(owner, kinds) and any(
            role.startswith(name[:-1]) if name.endswith("*") else role == name for name in names
        ):
            return 0
    return None


def _is_input_first(owner: nn.Module, parameter: Tensor) -> bool:
    """True if it is the weight (in, out) of a ``transformers.pytorch_utils.Conv1D``."""
    outputs = getattr(owner, "nf", None)
    return (
        type(owner).__name__ == "Conv1D"
        and isinstance(outputs, int)
        and parameter.dim() == 2
        and parameter.shape[1] == outputs
    )


def _packed(owner: nn.Module, key: str, last: str) -> Layers | None:
    """The layers that lie side by side in one parameter, as attention packs them."""
    if isinstance(owner, nn.MultiheadAttention) and key in ("in_proj_weight", "in_proj_bias"):
        return Layers(3)
    # GPT-2's query, key and value, or key and value where the query comes from elsewhere.
    if last == "c_attn" and key in ("weight", "bias"):
        weight = getattr(owner, "weight", None)
        if isinstance(weight, Tensor) and _is_input_first(owner, weight):
            several, rest = divmod(weight.shape[1], weight.shape[0])
            if several in (2, 3) and not rest:
                return Layers(several, dim=1 if key == "weight" else 0)
    return None


def _transposed(owner: nn.Module, parameter: Tensor) -> int:
    """The groups, if the parameter is a transposed convolution's weight, else 0."""
    if not isinstance(owner, TRANSPOSED):
        return 0
    inputs, outputs, groups = (
        cast(int, value) for value in (owner.in_channels, owner.out_channels, owner.groups)
    )
    kernel = cast(tuple[int, ...], owner.kernel_size)
    return groups if tuple(parameter.shape) == (inputs, outputs // groups, *kernel) else 0


def why_none_belongs(model: nn.Module) -> str:
    """Advice where none of the parameters that are trained is one of the model's."""
    if any(hasattr(module, "reshard") and hasattr(module, "unshard") for module in model.modules()):
        return (
            "FSDP2 has left it unsharded, as it does after a forward without a backward; call "
            "model.reshard() first"
        )
    return "pass the very model whose parameters are trained, not a copy"
