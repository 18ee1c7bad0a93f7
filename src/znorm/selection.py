"""The choice of the parameters that a transform acts on.

``select`` is one of

- ``"weights"``: tensors of two or more dims that do not belong to a normalization module and are
  not the magnitude of a weight norm (both need ``model=`` to be known), embeddings included;
- ``"all"``: every tensor;
- rules: a list of ``(pattern, True or False)``, the first match winning. A pattern is a glob on
  the parameter's name (``"head.*"``), a module type (``nn.Embedding``) or a function
  ``(name, parameter) -> bool``. What no rule matches is selected as by the transform's own
  default; end with ``("*", False)`` to leave it out. A rule that matches nothing raises.
  In place of True stands :class:`~znorm.Layers` for a parameter that holds several layers, such
  as ``("*.qkv.weight", znorm.Layers(3))``. That is a fact of the parameter: one transform of a
  chain needs to say it, and it holds for all of them. The packed query, key and value weights of
  ``nn.MultiheadAttention``, and of GPT-2's ``Conv1D``, are known with ``model=``.

A name is told without the prefixes of what wraps a model (``module.``, ``_orig_mod.``,
``_forward_module.``); a pattern may have them or not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor, nn

from znorm.layers import Layers
from znorm.parameter_info import NORMALIZATIONS, ParameterInfo

__all__ = ["Rule", "Select", "Selector", "Verdict", "freeze"]

Pattern: TypeAlias = str | type[nn.Module] | Callable[[str, Tensor], bool]
Rule: TypeAlias = tuple[Pattern, bool | Layers]
Select: TypeAlias = str | Sequence[Rule]


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


class Verdict(NamedTuple):
    """The verdict of one ``select`` on a parameter.

    Parameters
    ----------
    reason : str or None
        Why it is left out; None if it is selected.
    layers : Layers or None
        The layers that a rule says it holds.
    left_out_by_rule : bool
        Whether a rule has left it out, which makes it nobody's concern what it is.
    """

    reason: str | None
    layers: Layers | None
    left_out_by_rule: bool = False


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
        self._seen: list[ParameterInfo] = []

    def judge(self, tensor: Tensor, info: ParameterInfo, display: str) -> Verdict:
        """Judge one tensor by all rules."""
        selected: bool | Layers | None = None
        why = ""
        self._seen.append(info)
        # All rules are looked at, so that each is seen to match something.
        for position, (pattern, value) in enumerate(self.rules):
            if self._matches(position, pattern, tensor, info, display):
                self.matches[position] += 1
                if selected is None:
                    selected = value
                    why = f"rule {position} {_show(pattern)}"
        layers = selected if isinstance(selected, Layers) else None
        if self.skips_single_elements and tensor.numel() == 1:
            return Verdict("one element", layers)
        if selected is not None:
            return Verdict(None if selected else why, layers, left_out_by_rule=not selected)
        return Verdict(None if self.default == "all" else _no_weight(tensor, info), layers)

    def _matches(
        self, position: int, pattern: Pattern, tensor: Tensor, info: ParameterInfo, display: str
    ) -> bool:
        if isinstance(pattern, str):
            if info.name is None and info.outside:
                return False
            if info.name is None:
                raise ValueError(
                    f"{self.owner}: select: rule {position} {pattern!r} goes by name, but "
                    f"{display} has none; pass model=, or give the optimizer "
                    "model.named_parameters()"
                )
            names = (info.name, *info.aliases)
            # A name may hold brackets, which a pattern reads as a choice of characters.
            return any(name == pattern or fnmatchcase(name, pattern) for name in names)
        if isinstance(pattern, type):
            if info.module is None and info.outside:
                return False
            if info.module is None:
                raise ValueError(
                    f"{self.owner}: select: rule {position} {pattern.__name__} goes by module "
                    f"type, but the module of {display} is not known; pass model="
                )
            return issubclass(info.module, pattern)
        return bool(pattern(info.name or display, tensor))

    def check_all_matched(self) -> None:
        """Raise for the first rule that matched no parameter at all."""
        for position, count in enumerate(self.matches):
            if count == 0:
                pattern = self.rules[position][0]
                raise ValueError(
                    f"{self.owner}: select: rule {position} {_show(pattern)} matches no parameter"
                    f"{self._nearest(pattern)}; correct it or take it out"
                )

    def _nearest(self, pattern: Pattern) -> str:
        """The names or types that the pattern may have meant."""
        if isinstance(pattern, str):
            names = [info.name for info in self._seen if info.name is not None]
            near = get_close_matches(pattern.replace("*", ""), names, n=3, cutoff=0.5) or names[:3]
            return f" (the nearest names are {', '.join(map(repr, near))})"
        if isinstance(pattern, type):
            kinds = dict.fromkeys(
                info.module.__name__ for info in self._seen if info.module is not None
            )
            return f" (they belong to {', '.join(kinds)})"
        return ""


def _no_weight(tensor: Tensor, info: ParameterInfo) -> str | None:
    if tensor.dim() < 2:
        return "one dimension" if tensor.dim() == 1 else "no dimension"
    if info.module is not None and issubclass(info.module, NORMALIZATIONS):
        return f"normalization ({info.module.__name__})"
    return "magnitude of a weight norm" if info.magnitude else None


def _show(pattern: Pattern) -> str:
    if isinstance(pattern, str):
        return repr(pattern)
    return str(getattr(pattern, "__qualname__", pattern))
