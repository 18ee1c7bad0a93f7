"""The algebra of a chain's order: which links another one makes void.

A link changes the scale of a gradient, its center or both, for each output channel, for each
tensor, or for all of them together. A later link that sets the same anew, for units as small or
smaller, leaves nothing of it; a clip in between reads it first, and it counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from znorm.transforms.adaptive import AdaptiveClip
from znorm.transforms.centralize import Centralize
from znorm.transforms.clip import ClipNorm, ClipValue
from znorm.transforms.zscore import UnitNorm, ZNorm

__all__ = ["void_links"]

# Beyond this an epsilon may count beside a deviation, and a change of scale is not undone.
_SMALL = 1e-6


def void_links(links: Sequence[Any]) -> Iterator[str]:
    """A sentence for each link that has no effect, naming it, the other one, and what to do.

    >>> import znorm
    >>> [sentence.split()[:4] for sentence in void_links([znorm.ClipNorm(1.0), znorm.ZNorm()])]
    [['ClipNorm(threshold=1.0,', "select='all')", 'has', 'no']]
    """
    for position, link in enumerate(links):
        for later in links[position + 1 :]:
            if not _overlap(link, later):
                break
            if _undoes(later, link):
                yield (
                    f"{link!r} has no effect on the tensors that {later!r} acts on, which sets "
                    f"their {' and '.join(sorted(_changes(link)))} anew; put it last, or leave it "
                    "out"
                )
                break
            if later is links[position + 1] and _same_clip(link, later):
                loose, tight = sorted((link, later), key=lambda one: -float(one.threshold))
                yield (
                    f"{loose!r} has no effect on the tensors that {tight!r} acts on, which clips "
                    "at or below it; leave it out"
                )
                break
            if not _lets_through(later, link):
                break
        for earlier in reversed(links[:position]):
            if not _overlap(earlier, link):
                break
            if _has_done(earlier, link):
                if not _undoes(link, earlier):
                    yield (
                        f"{link!r} has no effect on the tensors that {earlier!r} acts on, whose "
                        f"{' and '.join(sorted(_sets(link)))} is so already; leave it out"
                    )
                break
            if not _lets_through(link, earlier):
                break


def _overlap(one: Any, other: Any) -> bool:
    """Whether both surely act on a tensor: rules can be known to only where they are the same."""
    by_rules = any(not isinstance(link.select, str) for link in (one, other))
    return not by_rules or one.select == other.select


def _changes(link: Any) -> set[str]:
    """What of a gradient the link can change; nothing known of ClipValue or a stranger."""
    if isinstance(link, ClipNorm | AdaptiveClip):
        return {"scale"}
    return _sets(link)


def _sets(link: Any) -> set[str]:
    """What is the same after the link, whatever it was before."""
    if getattr(link, "eps", 0.0) > _SMALL:
        return {"center"} if isinstance(link, ZNorm) and link.center else set()
    if isinstance(link, UnitNorm):
        return {"scale"}
    if isinstance(link, Centralize):
        return {"center"}
    if isinstance(link, ZNorm):
        return {name for name in ("center", "scale") if getattr(link, name)}
    return set()


def _fine(link: Any) -> int:
    """0 for a change that all tensors share, 1 for one by tensor, 2 for one by channel."""
    if link.joint:
        return 0
    return 2 if getattr(link, "granularity", "") == "channel" else 1


def _undoes(later: Any, link: Any) -> bool:
    return bool(_changes(link)) and _changes(link) <= _sets(later) and _fine(later) >= _fine(link)


def _has_done(earlier: Any, link: Any) -> bool:
    sets = _sets(link)
    if not sets or not sets <= _sets(earlier) or _fine(earlier) < _fine(link):
        return False
    if "scale" not in sets:
        return True
    # UnitNorm sets another norm than a z-score, and so does another correction.
    if isinstance(earlier, ZNorm) != isinstance(link, ZNorm):
        return False
    if getattr(earlier, "correction", None) != getattr(link, "correction", None):
        return False
    # Channels that are scaled and not centered do not make the deviation of a tensor 1; nor, with a
    # correction, do those that are.
    whole = "center" in _sets(earlier) and not getattr(earlier, "correction", 0)
    return _fine(earlier) == _fine(link) or whole


def _lets_through(later: Any, link: Any) -> bool:
    """Whether a change of scale reaches what comes after ``later`` as a change of scale."""
    return (
        _changes(link) == {"scale"} and _sets(later) == {"center"} and _fine(later) >= _fine(link)
    )


def _same_clip(one: Any, other: Any) -> bool:
    return (
        type(one) is type(other)
        and isinstance(one, ClipNorm | ClipValue | AdaptiveClip)
        and one.select == other.select
        and getattr(one, "eps", None) == getattr(other, "eps", None)
    )
