"""Chains of transforms: one after the other, measured once."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

from znorm.transforms.base import Transform, check_granularity
from znorm.transforms.redundancy import redundant

__all__ = ["Chain", "chain", "stages", "transforms_of"]


@dataclass(frozen=True, repr=False)
class Chain(Transform):
    """Transforms in the order in which they act; made by :func:`znorm.chain`.

    Parameters
    ----------
    transforms : tuple of Transform
    """

    transforms: tuple[Transform, ...] = ()

    def __repr__(self) -> str:
        return f"chain({', '.join(map(repr, self.transforms))})"


def chain(*transforms: Transform) -> Chain:
    """Join transforms, the first acting first; without any, the identity.

    Gradients are measured once for the whole chain, and once more after each
    :class:`~znorm.ClipValue`.

    Parameters
    ----------
    *transforms : transform

    Raises
    ------
    TypeError
        If an argument is not a transform.
    ValueError
        If one has a granularity that there is not.

    Warns
    -----
    UserWarning
        If a transform is made void by another: a change of scale before ZNorm, a looser clip.

    Examples
    --------
    >>> import znorm
    >>> znorm.chain(znorm.Centralize(), znorm.ClipNorm(1.0))
    chain(Centralize(select='weights'), ClipNorm(threshold=1.0, select='all'))
    """
    flat: list[Transform] = []
    for position, transform in enumerate(transforms):
        try:
            flat.extend(transforms_of(transform))
        except TypeError as error:
            raise TypeError(f"chain: argument {position}: {error}") from None
    for transform in flat:
        check_granularity(transform)
    for sentence in redundant(flat):
        warnings.warn(f"chain: {sentence}", stacklevel=2)
    return Chain(tuple(flat))


def transforms_of(transform: Any) -> tuple[Transform, ...]:
    """The transforms of a chain; a single one by itself; none for None.

    Raises
    ------
    TypeError
        If it is not a transform.
    """
    if transform is None:
        return ()
    if isinstance(transform, Chain):
        return transform.transforms
    if isinstance(transform, Transform):
        return (transform,)
    kind = f"the class {transform.__name__}" if isinstance(transform, type) else repr(transform)
    raise TypeError(
        f"expected a transform such as znorm.ZNorm(), found {kind}; one of your own is a class of "
        "the base znorm.transforms.Transform"
    )


def stages(transforms: tuple[Transform, ...]) -> tuple[tuple[Transform, ...], ...]:
    """The transforms in runs that one reading of the gradients serves.

    >>> import znorm
    >>> [len(run) for run in stages((znorm.ClipValue(1.0), znorm.ZNorm(), znorm.ClipNorm(1.0)))]
    [1, 2]
    """
    runs: list[tuple[Transform, ...]] = []
    for transform in transforms:
        if runs and not transform.elementwise and not runs[-1][0].elementwise:
            runs[-1] += (transform,)
        else:
            runs.append((transform,))
    return tuple(runs)
