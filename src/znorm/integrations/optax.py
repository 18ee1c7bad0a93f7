"""optax: the z-score of each leaf of a tree of gradients, as a link of ``optax.chain``."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp
import optax

from znorm.integrations.versions import warn_if_untested
from znorm.transforms.zscore import ZNorm

__all__ = ["z_score"]


def z_score(
    eps: float | jax.Array = 1e-10,
    *,
    center: bool = True,
    scale: bool = True,
    correction: int = 0,
    granularity: str = "tensor",
    axis: int = -1,
    select: str | list[tuple[str, bool]] = "weights",
) -> optax.GradientTransformation:
    """Replace each leaf by its z-score: ``(g - mean) / (std + eps)``, as :class:`znorm.ZNorm` does.

    Parameters
    ----------
    eps, center, scale, correction, granularity
        As of :class:`znorm.ZNorm`. ``eps`` may be an array of one number, too, as
        ``optax.inject_hyperparams(z_score, static_args=("axis", "correction"))`` gives it.
    axis : int, default -1
        The axis of output channels, for ``granularity="channel"``: the last of Flax's and Haiku's
        kernels, the first (0) of weights in torch's layout.
    select : "weights", "all" or a list of (str, bool), default "weights"
        The leaves: those of two or more axes, all, or by a glob on the leaf's path, such as
        ``("params.Dense_0.*", False)``; the first match wins, and what no rule matches is as with
        "weights". The others pass unchanged, as does a leaf of one element.

    Returns
    -------
    optax.GradientTransformation
        Without a state.

    Raises
    ------
    TypeError, ValueError
        For an argument of a wrong type or value; in ``init`` for a rule that matches nothing, in
        ``update`` for a leaf of integers or truth values.

    Warns
    -----
    UserWarning
        For a version of optax that is not tested.

    Notes
    -----
    Statistics are in float32, or in float64 where leaves are, and results rounded once to the
    leaf's own type. A constant leaf, or channel, becomes exactly 0; a leaf that holds NaN or inf
    becomes NaN as a whole, by channel too. A complex number counts as two real ones. A sum over
    entries above 3e38 / n overflows float32.

    Under ``jax.jit`` the statistics of a sharded array are those of all of it. Within ``shard_map``
    and ``pmap`` each device has an array of its own: reduce gradients first, as without a
    transform.

    References
    ----------
    Yun and Kim, arXiv 2408.01215, Eq. 1.

    Examples
    --------
    >>> import jax.numpy as jnp, optax
    >>> from znorm.integrations.optax import z_score
    >>> optimizer = optax.chain(z_score(), optax.adam(1e-3))
    >>> gradients = {"kernel": jnp.array([[1.0, 2.0], [3.0, 6.0]]), "bias": jnp.array([1.0, 2.0])}
    >>> found, _ = z_score().update(gradients, optax.EmptyState())
    >>> [round(float(entry), 4) for entry in found["kernel"].ravel()]
    [-1.069, -0.5345, 0.0, 1.6036]
    """
    warn_if_untested("optax")
    if not isinstance(axis, int) or isinstance(axis, bool):
        static = '; inject_hyperparams leaves it one with static_args=("axis", "correction")'
        raise TypeError(
            f"z_score: axis must be a whole number, found {axis!r}"
            f"{static if isinstance(axis, jax.Array) else ''}"
        )
    # It checks the arguments, with the same words; of an array the value may not be known yet.
    known = ZNorm.eps if isinstance(eps, jax.Array) else eps
    ZNorm(known, center, scale, correction, granularity, select)
    rules = [] if isinstance(select, str) else list(select)
    for pattern, chosen in rules:
        if not isinstance(pattern, str) or not isinstance(chosen, bool):
            raise TypeError(
                f"z_score: select takes pairs of a glob and True or False, found "
                f"({pattern!r}, {chosen!r})"
            )

    def selected(path: Any, leaf: Any) -> bool:
        if select == "all":
            return True
        name = _name(path)
        matching = (chosen for pattern, chosen in rules if fnmatchcase(name, pattern))
        return next(matching, leaf.ndim > 1)

    def init(params: Any) -> optax.EmptyState:
        names = [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        for pattern, _ in rules:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ValueError(
                    f"z_score: select: {pattern!r} matches none of the {len(names)} leaves, such "
                    f"as {', '.join(names[:3])}"
                )
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        def one(path: Any, leaf: Any) -> Any:
            if not selected(path, leaf):
                return leaf
            if not jnp.issubdtype(leaf.dtype, jnp.inexact):
                raise TypeError(
                    f"z_score: {_name(path)} is of {leaf.dtype}; leave it out by a rule of select"
                )
            axes = tuple(range(leaf.ndim))
            # A vector has no axis to average over but the output one: it stays one unit.
            if granularity == "channel" and leaf.ndim > 1:
                if not -leaf.ndim <= axis < leaf.ndim:
                    raise ValueError(
                        f"z_score: axis {axis} is none of {_name(path)}, of shape {leaf.shape}"
                    )
                axes = tuple(place for place in axes if place != axis % leaf.ndim)
            count = 1
            for place in axes:
                count *= leaf.shape[place]
            if leaf.size == 0 or count <= 1 or not (center or scale):
                return leaf
            if not jnp.iscomplexobj(leaf):
                return _z_score(leaf, axes, count, eps, center, scale, correction)
            pairs = jnp.stack([leaf.real, leaf.imag], -1)
            axes, count = (*axes, leaf.ndim), 2 * count
            pairs = _z_score(pairs, axes, count, eps, center, scale, correction)
            return jax.lax.complex(pairs[..., 0], pairs[..., 1])

        return jax.tree_util.tree_map_with_path(one, updates), state

    return optax.GradientTransformation(init, update)


def _name(path: Any) -> str:
    """The path of a leaf with dots: ``params.Dense_0.kernel``."""
    return str(jax.tree_util.keystr(path, simple=True, separator="."))


def _z_score(
    g: Any,
    axes: tuple[int, ...],
    count: int,
    eps: float | jax.Array,
    center: bool,
    scale: bool,
    correction: int,
) -> Any:
    wide = g.astype(jnp.promote_types(g.dtype, jnp.float32))
    # Twice: what the first mean has lost to rounding is in the second.
    deviations = wide - _sum(wide, axes) / count
    deviations = deviations - _sum(deviations, axes) / count
    # Squares of the ratios neither overflow nor vanish.
    largest = jnp.max(jnp.abs(deviations), axes, keepdims=True)
    ratios = deviations / jnp.where(largest == 0, 1, largest)
    std = largest * jnp.sqrt(_sum(ratios * ratios, axes) / (count - correction))
    # The mean of equal entries need not be equal to them: rounding alone would be blown up.
    first, least = (extreme(wide, axes, keepdims=True) for extreme in (jnp.max, jnp.min))
    constant = first == least
    result = deviations if center else wide
    if scale:
        # To multiply would round once more; the other branch keeps 0 / 0 out of derivatives.
        result = result / jnp.where(constant, 1, std + eps)
    # Both extremes are NaN where an entry is.
    finite = jnp.isfinite(first).all() & jnp.isfinite(least).all()
    return jnp.where(finite, jnp.where(constant, 0, result), jnp.nan).astype(g.dtype)


def _sum(x: Any, axes: tuple[int, ...]) -> Any:
    """The sum over these axes, one after the other: float32 loses less in several short sums."""
    for axis in axes:
        x = jnp.sum(x, axis, keepdims=True)
    return x
