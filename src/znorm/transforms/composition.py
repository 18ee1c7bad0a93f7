"""Chains of transforms: one after the other, measured once."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from torch import Tensor

from znorm.moments import Affine, Moments
from znorm.selection import Select
from znorm.transforms.clip import ClipValue
from znorm.transforms.order import void_links

__all__ = [
    "Chain",
    "Elementwise",
    "Link",
    "Measured",
    "Relative",
    "Transform",
    "chain",
    "links",
    "stages",
]


class Measured(Protocol):
    """A transform whose affine map follows from moments.

    ``granularity`` says what one unit is, "tensor" or "channel"; ``joint`` that one decision is
    taken over all tensors together; ``skips_single_elements`` that a tensor of one element is
    left alone; ``relative`` that it is a :class:`Relative`.
    """

    @property
    def select(self) -> Select: ...
    @property
    def granularity(self) -> str: ...
    @property
    def joint(self) -> bool: ...
    @property
    def relative(self) -> bool: ...
    @property
    def skips_single_elements(self) -> bool: ...

    def decide(self, moments: Moments) -> Affine:
        """The map for these units; a pure function."""
        ...


class Relative(Protocol):
    """A measured transform that compares gradients with their parameters."""

    @property
    def select(self) -> Select: ...
    @property
    def granularity(self) -> str: ...
    @property
    def joint(self) -> bool: ...
    @property
    def relative(self) -> bool: ...
    @property
    def skips_single_elements(self) -> bool: ...

    def decide(self, moments: Moments, parameters: Moments) -> Affine:
        """The map for these units, from their moments and those of their parameters."""
        ...


class Elementwise(Protocol):
    """A transform that reads one entry at a time."""

    @property
    def select(self) -> Select: ...
    @property
    def joint(self) -> bool: ...
    @property
    def skips_single_elements(self) -> bool: ...

    def clamp_(self, gradient: Tensor) -> None:
        """Change one gradient in place."""
        ...


Link: TypeAlias = Measured | Relative | Elementwise


@dataclass(frozen=True, repr=False)
class Chain:
    """Transforms in the order in which they act; made by :func:`chain`."""

    links: tuple[Link, ...] = ()

    @property
    def joint(self) -> bool:
        return any(link.joint for link in self.links)

    def __repr__(self) -> str:
        return f"chain({', '.join(map(repr, self.links))})"


Transform: TypeAlias = Link | Chain


def chain(*transforms: Transform) -> Chain:
    """Join transforms, the first acting first; without any, the identity.

    Gradients are measured once for the whole chain, and once more after each
    :class:`~znorm.ClipValue`.

    Raises
    ------
    TypeError
        If an argument is not a transform.

    Warns
    -----
    UserWarning
        If a link is made void by another: a change of scale before ZNorm, a looser clip.

    Examples
    --------
    >>> import znorm
    >>> znorm.chain(znorm.Centralize(), znorm.ClipNorm(1.0))
    chain(Centralize(select='weights'), ClipNorm(threshold=1.0, select='all'))
    """
    flat: list[Link] = []
    for position, transform in enumerate(transforms):
        try:
            flat.extend(links(transform))
        except TypeError as error:
            raise TypeError(f"chain: argument {position}: {error}") from None
    for sentence in void_links(flat):
        warnings.warn(f"chain: {sentence}", stacklevel=2)
    return Chain(tuple(flat))


def links(transform: Transform | None) -> tuple[Link, ...]:
    """The links of a transform: none for None, itself for a single one.

    Raises
    ------
    TypeError
        If it is not a transform.
    """
    if transform is None:
        return ()
    if isinstance(transform, Chain):
        return transform.links
    if isinstance(transform, type) or not (
        hasattr(transform, "select")
        and (hasattr(transform, "decide") or hasattr(transform, "clamp_"))
    ):
        kind = f"the class {transform.__name__}" if isinstance(transform, type) else repr(transform)
        raise TypeError(f"expected a transform such as znorm.ZNorm(), found {kind}")
    return (transform,)


def stages(transform: Transform | None) -> tuple[tuple[Link, ...], ...]:
    """Links in runs that one reading of the gradients serves.

    >>> import znorm
    >>> [len(run) for run in stages(znorm.chain(znorm.ClipValue(1.0), znorm.ZNorm()))]
    [1, 1]
    """
    runs: list[tuple[Link, ...]] = []
    for link in links(transform):
        if runs and not isinstance(link, ClipValue) and not isinstance(runs[-1][0], ClipValue):
            runs[-1] += (link,)
        else:
            runs.append((link,))
    return tuple(runs)
