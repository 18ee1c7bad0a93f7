"""The algebra of a chain's order: which transforms another one makes void.

A transform changes the scale of a gradient, its center or both, for each output channel, for each
tensor, or for all of them together. A later one that sets the same anew, for units as small or
smaller, leaves nothing of it; a clip in between reads it first, and it counts. What a transform
changes and sets it says itself (`Transform.resets`, `is_clip`, `limit`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from znorm.transforms.base import Transform

__all__ = ["redundant"]

# How small the units are on which a transform decides.
_FINENESS = {"global": 0, "tensor": 1, "channel": 2}


def redundant(transforms: Sequence[Transform]) -> Iterator[str]:
    """A sentence for each transform that has no effect: its name, the other one's, what to do.

    >>> import znorm
    >>> [sentence.split()[:4] for sentence in redundant([znorm.ClipNorm(1.0), znorm.ZNorm()])]
    [['ClipNorm(threshold=1.0,', "select='all')", 'has', 'no']]
    """
    for position, one in enumerate(transforms):
        for later in transforms[position + 1 :]:
            if not _overlap(one, later):
                break
            if _undoes(later, one):
                yield (
                    f"{one!r} has no effect on the tensors that {later!r} acts on, which sets "
                    f"their {' and '.join(sorted(_changes(one)))} anew; put it last, or leave it "
                    "out"
                )
                break
            if later is transforms[position + 1] and _bound_the_same(one, later):
                loose, tight = sorted((one, later), key=_bound, reverse=True)
                yield (
                    f"{loose!r} has no effect on the tensors that {tight!r} acts on, which clips "
                    "at or below it; leave it out"
                )
                break
            if not _lets_through(later, one):
                break
        for earlier in reversed(transforms[:position]):
            if not _overlap(earlier, one):
                break
            if _has_done(earlier, one):
                if not _undoes(one, earlier):
                    yield (
                        f"{one!r} has no effect on the tensors that {earlier!r} acts on, whose "
                        f"{' and '.join(sorted(one.resets()))} is so already; leave it out"
                    )
                break
            if not _lets_through(one, earlier):
                break


def _overlap(one: Transform, other: Transform) -> bool:
    """True if both surely act on a tensor: of rules that is known where they are the same."""
    by_rules = any(not isinstance(transform.select, str) for transform in (one, other))
    return not by_rules or one.select == other.select


def _changes(transform: Transform) -> set[str]:
    """The properties of a gradient that the transform can change, as far as it says so."""
    if transform.is_clip and not transform.elementwise:
        return {"scale"}
    return set(transform.resets())


def _fineness(transform: Transform) -> int:
    return _FINENESS[transform.granularity]


def _undoes(later: Transform, earlier: Transform) -> bool:
    changes = _changes(earlier)
    finer = _fineness(later) >= _fineness(earlier)
    return bool(changes) and changes <= set(later.resets()) and finer


def _has_done(earlier: Transform, later: Transform) -> bool:
    done, asked = earlier.resets(), later.resets()
    if not asked or any(done.get(what, ...) != value for what, value in asked.items()):
        return False
    if _fineness(earlier) < _fineness(later):
        return False
    # Channels that are scaled and not centered do not make the deviation of a tensor 1; nor, with a
    # correction, do those that are.
    whole = "center" in done and done.get("scale") == ("std", 0)
    return "scale" not in asked or _fineness(earlier) == _fineness(later) or whole


def _lets_through(later: Transform, earlier: Transform) -> bool:
    """True if a change of scale reaches what comes after ``later`` as a change of scale."""
    return (
        _changes(earlier) == {"scale"}
        and set(later.resets()) == {"center"}
        and _fineness(later) >= _fineness(earlier)
    )


def _bound_the_same(one: Transform, other: Transform) -> bool:
    first, second = one.limit(), other.limit()
    return first is not None and second is not None and first[0] == second[0]


def _bound(transform: Transform) -> float:
    limit = transform.limit()
    assert limit is not None
    return limit[1]
