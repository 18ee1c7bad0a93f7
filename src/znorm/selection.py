"""Which parameters a transform acts on, and what is known of each of them.

``select`` is one of

- ``"weights"``: tensors of two or more dims that do not belong to a normalization module (which
  needs ``model=`` to be known), embeddings included;
- ``"all"``: every tensor;
- rules: a list of ``(pattern, True or False)``, the first match winning. A pattern is a glob on
  the parameter's name (``"head.*"``), a module type (``nn.Embedding``) or a function
  ``(name, parameter) -> bool``. What no rule matches is selected as by the transform's own
  default; end with ``("*", False)`` to leave it out. A rule that matches nothing raises.
  In place of True stands :class:`~znorm.Layers` for a parameter that holds several layers, such
  as ``("*.qkv.weight", znorm.Layers(3))``. That is a fact of the parameter: one link of a chain
  needs to say it, and it holds for all of them. The packed query, key and value weights of
  ``nn.MultiheadAttention`` are known with ``model=``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeAlias, cast

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.parametrize import ParametrizationList
from torch.utils.weak import WeakTensorKeyDictionary

from znorm.layers import Layers

__all__ = ["Origin", "Rule", "Select", "Selector", "freeze", "origins"]

Pattern: TypeAlias = str | type[nn.Module] | Callable[[str, Tensor], bool]
Rule: TypeAlias = tuple[Pattern, bool | Layers]
Select: TypeAlias = str | Sequence[Rule]

NORMALIZATIONS: tuple[type[nn.Module], ...] = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
TRANSPOSED: tuple[type[nn.Module], ...] = (
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


@dataclass(frozen=True)
class Origin:
    """What is known of where a parameter comes from.

    Parameters
    ----------
    name : str, optional
        Its name, if it has one.
    module : type, optional
        The type of the module that owns it, if the model is known.
    transposed : int, default 0
        The groups of a transposed convolution whose weight it is; 0 for all other parameters.
    layers : Layers, optional
        The layers that it holds, if the module packs several in one parameter.
    """

    name: str | None = None
    module: type[nn.Module] | None = None
    transposed: int = 0
    layers: Layers | None = None

    def __deepcopy__(self, memo: Any) -> Origin:
        return self

    def __getstate__(self) -> dict[str, Any]:
        # A class that was made inside a function cannot be pickled: its nearest base that can
        # tells as much about its parameters.
        kinds = [] if self.module is None else self.module.__mro__
        importable = (kind for kind in kinds if _is_importable(kind))
        return {**self.__dict__, "module": next(importable, None)}


def _is_importable(kind: type) -> bool:
    found: Any = sys.modules.get(kind.__module__)
    for name in kind.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is kind


def origins(model: nn.Module) -> MutableMapping[Tensor, Origin]:
    """For each parameter of ``model``: its first name, and the module that owns it.

    By identity and weakly held: a parameter that has gone makes no other one known.

    Raises
    ------
    TypeError
        If ``model`` is not a module.
    ValueError
        If a part of it is wrapped in FSDP1.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, found {type(model).__name__}")
    found: MutableMapping[Tensor, Origin] = WeakTensorKeyDictionary()
    for path, module in model.named_modules():
        # By name: importing it would load all of torch.distributed.
        if type(module).__name__ == "FullyShardedDataParallel":
            raise ValueError(
                f"model: {path or 'all of it'} is wrapped in FullyShardedDataParallel (FSDP1), "
                "whose flat shards do not keep layers apart; use fully_shard (FSDP2)"
            )
        owner = module
        if isinstance(module, ParametrizationList):
            owner = model.get_submodule(path.rpartition("parametrizations")[0].rstrip("."))
        for name, parameter in module.named_parameters(recurse=False):
            full = f"{path}.{name}" if path else name
            groups = _transposed(owner, parameter)
            packed = _packed(owner, name)
            found.setdefault(parameter, Origin(full, type(owner), groups, packed))
    return found


def _packed(owner: nn.Module, name: str) -> Layers | None:
    """Query, key and value lie one after the other along dim 0 of what attention packs."""
    if isinstance(owner, nn.MultiheadAttention) and name in ("in_proj_weight", "in_proj_bias"):
        return Layers(3)
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


def freeze(owner: str, select: Any) -> Select:
    """Check the form of ``select`` and make it immutable.

    Raises
    ------
    TypeError, ValueError
        Naming ``owner``, what was found and what is expected.
    """
    if isinstance(select, str):
        if select not in ("weights", "all"):
            raise ValueError(
                f'{owner}: select must be "weights", "all" or a list of rules, found {select!r}; '
                f"a single name pattern is written [({select!r}, True)]"
            )
        return select
    if not isinstance(select, Iterable):
        raise TypeError(
            f'{owner}: select must be "weights", "all" or a list of rules, '
            f"found {type(select).__name__} {select!r}"
        )
    rules = tuple(select)
    for position, rule in enumerate(rules):
        if not (
            isinstance(rule, tuple | list) and len(rule) == 2 and isinstance(rule[1], bool | Layers)
        ):
            raise TypeError(
                f"{owner}: select: rule {position} must be (pattern, True, False or "
                f"znorm.Layers(...)), found {rule!r}"
            )
        pattern = rule[0]
        if isinstance(pattern, type) and not issubclass(pattern, nn.Module):
            raise TypeError(
                f"{owner}: select: rule {position} names the type {pattern.__name__}, "
                "which is not a torch.nn.Module"
            )
        if not (isinstance(pattern, str) or callable(pattern)):
            raise TypeError(
                f"{owner}: select: rule {position} must be a name pattern, a module type or a "
                f"function, found {type(pattern).__name__} {pattern!r}"
            )
    return tuple((rule[0], rule[1]) for rule in rules)


class Selector:
    """Applies one ``select`` to parameters one by one, and counts what its rules matched.

    Parameters
    ----------
    owner : str
        The transform's name, for messages.
    select : Select
        Frozen.
    default : "weights" or "all"
        For what no rule matches.
    skips_single_elements : bool
        Whether one-element tensors are left alone whatever the rules say.
    """

    def __init__(
        self, owner: str, select: Select, default: str, skips_single_elements: bool
    ) -> None:
        self.owner = owner
        self.rules: tuple[Rule, ...] = () if isinstance(select, str) else tuple(select)
        self.default = select if isinstance(select, str) else default
        self.skips_single_elements = skips_single_elements
        self.matches = [0] * len(self.rules)

    def judge(
        self, tensor: Tensor, origin: Origin, display: str
    ) -> tuple[str | None, Layers | None]:
        """Why the tensor is not selected, None if it is; and the layers a rule says it holds."""
        layers = None
        selected: bool | Layers | None = None
        # All rules are looked at, so that each is seen to match something.
        for position, (pattern, value) in enumerate(self.rules):
            if self._matches(position, pattern, tensor, origin, display):
                self.matches[position] += 1
                if selected is None:
                    selected = value
                    why = f"rule {position} {_show(pattern)}"
        if isinstance(selected, Layers):
            layers = selected
        if self.skips_single_elements and tensor.numel() == 1:
            return "one element", layers
        if selected is not None:
            return (None if selected else why), layers
        return (None if self.default == "all" else _no_weight(tensor, origin)), layers

    def _matches(
        self, position: int, pattern: Pattern, tensor: Tensor, origin: Origin, display: str
    ) -> bool:
        if isinstance(pattern, str):
            if origin.name is None:
                raise ValueError(
                    f"{self.owner}: select: rule {position} {pattern!r} goes by name, but "
                    f"{display} has none; pass model=, or give the optimizer "
                    "model.named_parameters()"
                )
            return fnmatchcase(origin.name, pattern)
        if isinstance(pattern, type):
            if origin.module is None:
                raise ValueError(
                    f"{self.owner}: select: rule {position} {pattern.__name__} goes by module "
                    f"type, but the module of {display} is not known; pass model="
                )
            return issubclass(origin.module, pattern)
        return bool(pattern(display, tensor))

    def check_all_matched(self) -> None:
        """Raise for the first rule that matched no parameter at all."""
        for position, count in enumerate(self.matches):
            if count == 0:
                raise ValueError(
                    f"{self.owner}: select: rule {position} {_show(self.rules[position][0])} "
                    "matches no parameter; correct it or take it out"
                )


def _no_weight(tensor: Tensor, origin: Origin) -> str | None:
    if tensor.dim() < 2:
        return "one dimension" if tensor.dim() == 1 else "no dimension"
    if origin.module is not None and issubclass(origin.module, NORMALIZATIONS):
        return f"normalization ({origin.module.__name__})"
    return None


def _show(pattern: Pattern) -> str:
    if isinstance(pattern, str):
        return repr(pattern)
    return str(getattr(pattern, "__qualname__", pattern))
