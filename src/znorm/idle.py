"""Warnings of transforms that do nothing, which would else be silent."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence

from torch import Tensor

from znorm._torch_internals import users_level
from znorm.layout import Layout

__all__ = ["warn_if_idle", "warn_if_no_gradient", "warn_if_swapped"]


def warn_if_idle(layouts: Sequence[Layout]) -> None:
    """Warn of each transform that acts on none of its parameters, saying why.

    A layout each for the groups of an optimizer, if they have transforms of their own.
    """
    for number, layout in enumerate(layouts):
        of = f"group {number}: " if len(layouts) > 1 else ""
        if not layout.writes or not (layout.entries or of):
            continue
        idle = [
            transform
            for position, transform in enumerate(layout.transforms)
            if not any(entry.acts[position] for entry in layout.entries)
        ]
        if not idle:
            continue
        if not layout.entries:
            sentence = f"{layout.transform!r} acts on nothing, since the group is empty"
        elif len(idle) < len(layout.transforms):
            shown = ", ".join(map(repr, idle))
            sentence = (
                f"{shown} of {layout.transform!r} acts on none of the {len(layout.entries)} "
                "parameters; describe() says why of each"
            )
        else:
            reasons = Counter(entry.why for entry in layout.entries)
            sentence = (
                f"{layout.transform!r} acts on none of the {len(layout.entries)} parameters: "
                + "; ".join(f"{several} of {why}" for why, several in reasons.items())
            )
        warnings.warn(f"znorm: {of}{sentence}", stacklevel=users_level())


def warn_if_no_gradient(
    transform: object, gradients: Sequence[tuple[Layout, Sequence[Tensor | None]]]
) -> bool:
    """Warn if there are gradients, and none that the transform acts on.

    Returns
    -------
    bool
        Whether there are gradients at all.
    """
    entries = [
        (entry.selected and layout.writes, gradient is not None)
        for layout, tensors in gradients
        for entry, gradient in zip(layout.entries, tensors, strict=True)
    ]
    some = any(present for _, present in entries)
    # Where it acts on nothing at all, that has been said.
    acts = [present for selected, present in entries if selected]
    if some and acts and not any(acts):
        warnings.warn(
            f"znorm: {transform!r} acts on parameters that have no gradient, while others have "
            "one: this step is taken without it; describe() tells which they are",
            stacklevel=users_level(),
        )
    return some


def warn_if_swapped(before: Sequence[Tensor], now: Sequence[Tensor]) -> bool:
    """True if parameters were replaced by others of other shapes, which is said."""
    old, new = set(before), set(now)
    gone = Counter(tuple(p.shape) for p in before if p not in new)
    come = Counter(tuple(p.shape) for p in now if p not in old)
    if not gone or not come or gone == come:
        return False
    warnings.warn(
        f"znorm: {gone.total()} parameters of the optimizer have been replaced by {come.total()} "
        f"of other shapes, such as {next(iter(come - gone or come))}; if these are shards or "
        "vectors made of several layers, what a layer is can no longer be told: detach the "
        "transform",
        stacklevel=users_level(),
    )
    return True
