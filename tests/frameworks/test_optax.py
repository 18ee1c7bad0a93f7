"""`znorm.integrations.optax`: equal to torch's transform, exact, at home among optax's own."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest
import torch

import znorm
from znorm.integrations import versions

pytestmark = pytest.mark.slow

jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")

import jax.numpy as jnp  # noqa: E402

from znorm.integrations.optax import z_score  # noqa: E402

RNG = np.random.default_rng(0)


def applied(tree: Any, **options: Any) -> Any:
    """Under jit, as everybody's update is."""
    transform = z_score(**options)
    return jax.jit(transform.update)(tree, transform.init(tree))[0]


def exact(g: np.ndarray, axes: Any = None, eps: float = 1e-10, correction: int = 0) -> np.ndarray:
    """The z-score in float64."""
    d = g.astype(np.float64)
    std = d.std(axes, ddof=correction, keepdims=True)
    return np.where(std == 0, 0, (d - d.mean(axes, keepdims=True)) / (std + eps))


def tree() -> dict[str, Any]:
    """As Flax names and lays them out: (in, out), (height, width, in, out)."""
    return {
        "Dense_0": {"kernel": RNG.standard_normal((6, 8)), "bias": RNG.standard_normal(8)},
        "Conv_0": {"kernel": RNG.standard_normal((3, 3, 4, 5)) + 2, "bias": np.ones(5)},
        "Norm_0": {"scale": np.ones(5)},
    }


def on_device(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"correction": 1},
        {"center": False},
        {"scale": False},
        {"eps": 1e-3},
        {"granularity": "channel"},
        {"granularity": "channel", "correction": 1, "scale": False},
    ],
    ids=str,
)
def test_the_same_as_torchs_in_flaxs_layout(options: dict[str, Any]) -> None:
    gradients = on_device(tree())
    found = applied(gradients, **options)
    # torch has (out, in) and (out, in, height, width).
    turns = {"Dense_0": (1, 0), "Conv_0": (3, 2, 0, 1)}
    for layer, turn in turns.items():
        kernel = np.asarray(gradients[layer]["kernel"]).transpose(turn)
        g = torch.tensor(kernel)
        transform = znorm.ZNorm(**options)
        layout = znorm.Layout([("w", g)], transform)
        znorm.apply_([g], znorm.decide(transform, znorm.measure([g], layout)))
        ours = np.asarray(found[layer]["kernel"]).transpose(turn)
        np.testing.assert_allclose(ours, g.numpy(), rtol=0, atol=1e-6)
    for layer, name in (("Dense_0", "bias"), ("Conv_0", "bias"), ("Norm_0", "scale")):
        assert (found[layer][name] == gradients[layer][name]).all()


def test_torchs_layout_has_its_channels_first() -> None:
    g = RNG.standard_normal((5, 4, 3)).astype(np.float32)
    found = applied({"w": jnp.asarray(g)}, granularity="channel", axis=0)["w"]
    np.testing.assert_allclose(np.asarray(found), exact(g, (1, 2)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [1.0, 1e-25])
@pytest.mark.parametrize("ratio", [0.0, 1.0, 1e2, 1e4, 1e6])
@pytest.mark.parametrize("shape", [(3, 3, 64, 64), (1024, 512), (1, 500_000)], ids=str)
def test_the_error_against_float64(shape: tuple[int, ...], ratio: float, size: float) -> None:
    g = ((RNG.standard_normal(shape) + ratio) * size).astype(np.float32)
    expected = exact(g)
    error = np.abs(np.asarray(applied({"w": jnp.asarray(g)})["w"], np.float64) - expected)
    assert error.max() <= 3e-7 * np.abs(expected).max()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_rounded_once(dtype: Any) -> None:
    g = jnp.asarray(RNG.standard_normal((300, 400)) + 0.1, dtype)
    found = applied({"w": g})["w"]
    assert found.dtype == dtype
    once = jnp.asarray(exact(np.asarray(g, np.float64)).astype(np.float32), dtype)
    assert float((found == once).mean()) > 0.999
    # In place in the type itself, as three lines of one's own are, fewer are right.
    plain = (g - g.mean()) / (g.std() + 1e-10)
    assert float((plain == once).mean()) < 0.9


@pytest.mark.parametrize("value", [0.0, 0.1, -3e-7, 1e30])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_a_constant_is_zero(value: float, granularity: str) -> None:
    g = jnp.full((1000, 300), value, jnp.float32)
    for options in ({}, {"scale": False}, {"center": False}):
        assert (applied({"w": g}, granularity=granularity, **options)["w"] == 0).all()


def test_three_lines_of_ones_own_do_not_give_zero() -> None:
    plain = optax.stateless(
        lambda tree, _: jax.tree.map(lambda x: (x - x.mean()) / (x.std() + 1e-10), tree)
    )
    worst = 0.0
    for side in (7, 100, 333):
        g = {"w": jnp.full((side, side), 0.1, jnp.float32)}
        found = plain.update(g, plain.init(None))[0]["w"]
        worst = max(worst, float(jnp.abs(found).max()))
        assert (applied(g)["w"] == 0).all()
    assert worst > 0.9


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("options", [{}, {"scale": False}, {"center": False}], ids=str)
def test_what_is_not_finite_makes_all_of_it_nan(bad: float, options: dict[str, Any]) -> None:
    g = RNG.standard_normal((8, 5)).astype(np.float32)
    g[2, 3] = bad
    assert jnp.isnan(applied({"w": jnp.asarray(g)}, **options)["w"]).all()
    assert jnp.isnan(applied({"w": jnp.full((2, 3), bad)}, **options)["w"]).all()
    # torch's, too, hides nothing in the other channels.
    by_channel = {**options, "granularity": "channel"}
    assert jnp.isnan(applied({"w": jnp.asarray(g)}, **by_channel)["w"]).all()
    assert torchs(g.T, **by_channel).isnan().all()


def torchs(g: np.ndarray, **options: Any) -> torch.Tensor:
    """The transform of torch, of a weight in torch's layout."""
    found = torch.tensor(np.ascontiguousarray(g))
    transform = znorm.ZNorm(**options)
    layout = znorm.Layout([("w", found)], transform)
    znorm.apply_([found], znorm.decide(transform, znorm.measure([found], layout)))
    return found


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("correction", [0, 1])
@pytest.mark.parametrize("shape", [(6, 4), (1, 4), (1, 1)], ids=str)
def test_a_complex_number_is_two_real_ones(
    shape: tuple[int, ...], correction: int, granularity: str
) -> None:
    g = (RNG.standard_normal(shape) + 1j * RNG.standard_normal(shape)).astype(np.complex64)
    options: dict[str, Any] = {"correction": correction, "granularity": granularity}
    found = applied({"w": jnp.asarray(g)}, **options)["w"]
    assert found.dtype == jnp.complex64
    expected = torchs(g.T, **options).numpy().T
    np.testing.assert_allclose(np.asarray(found), expected, rtol=0, atol=1e-6)
    if granularity == "tensor" and g.size > 1:
        parts = exact(np.stack([g.real, g.imag]), correction=correction)
        np.testing.assert_allclose(np.asarray(found), parts[0] + 1j * parts[1], rtol=0, atol=1e-6)


def test_a_vector_has_no_channels() -> None:
    g = RNG.standard_normal(7).astype(np.float32)
    found = applied({"w": jnp.asarray(g)}, granularity="channel", select="all")["w"]
    np.testing.assert_allclose(np.asarray(found), exact(g), rtol=0, atol=1e-6)
    expected = torchs(g, granularity="channel", select="all").numpy()
    np.testing.assert_allclose(np.asarray(found), expected, rtol=0, atol=1e-6)


def test_what_has_one_element_or_none_passes() -> None:
    gradients = {"one": jnp.ones((1, 1)), "none": jnp.ones((0, 3)), "scalar": jnp.float32(2.0)}
    found = applied(gradients, select="all")
    assert (float(found["one"][0, 0]), found["none"].shape, float(found["scalar"])) == (
        1.0,
        (0, 3),
        2.0,
    )
    column = jnp.ones((1, 4))  # channels of one element
    assert (applied({"w": column}, granularity="channel")["w"] == 1).all()


def test_rules_and_what_they_leave_out() -> None:
    gradients = on_device(tree())
    found = applied(gradients, select=[("Dense_0.*", False), ("Norm_0.scale", True)])
    assert (found["Dense_0"]["kernel"] == gradients["Dense_0"]["kernel"]).all()
    assert (found["Norm_0"]["scale"] == 0).all()
    assert abs(float(found["Conv_0"]["kernel"].std()) - 1) < 1e-6
    every = applied(gradients, select="all")
    assert abs(float(every["Dense_0"]["bias"].std()) - 1) < 1e-6


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"'Dense_7\.\*' matches none of the 5 leaves, such as Conv"
    ):
        z_score(select=[("Dense_7.*", False)]).init(on_device(tree()))
    with pytest.raises(TypeError, match=r"select takes pairs of a glob and True or False, found"):
        z_score(select=[(torch.nn.Linear, False)])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"granularity"):
        z_score(granularity="row")
    with pytest.raises(TypeError, match=r"eps"):
        z_score("small")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"axis must be a whole number, found 1\.5"):
        z_score(axis=1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"axis 3 is none of w, of shape \(2, 3\)"):
        applied({"w": jnp.ones((2, 3))}, granularity="channel", axis=3)
    with pytest.raises(TypeError, match=r"inject_hyperparams leaves it one with static_args="):
        optax.inject_hyperparams(z_score)(eps=1e-3).init(on_device(tree()))
    with pytest.raises(TypeError, match=r"w is of bool; leave it out"):
        applied({"w": jnp.ones((2, 3), bool)})
    with pytest.raises(TypeError, match=r"w is of int32"):
        applied({"w": jnp.ones((2, 3), jnp.int32)})


def test_a_training_is_torchs() -> None:
    """Adam after the z-score, 20 steps of a regression with a hidden layer."""
    first, second = RNG.standard_normal((6, 8)) / 3, RNG.standard_normal((8, 1)) / 3
    images = RNG.standard_normal((64, 6))
    weights = {"first": jnp.asarray(first, jnp.float32), "second": jnp.asarray(second, jnp.float32)}
    optimizer = optax.chain(z_score(), optax.adam(0.01))
    state = optimizer.init(weights)

    def loss(weights: Any, rows: Any) -> Any:
        found = jnp.tanh(rows @ weights["first"]) @ weights["second"]
        return ((found - rows[:, :1]) ** 2).mean()

    @jax.jit
    def step(weights: Any, state: Any, rows: Any) -> Any:
        updates, state = optimizer.update(jax.grad(loss)(weights, rows), state, weights)
        return optax.apply_updates(weights, updates), state

    parameters = [torch.nn.Parameter(torch.tensor(w, dtype=torch.float32)) for w in (first, second)]
    torchs = znorm.optim.Adam(parameters, lr=0.01, transform=znorm.ZNorm())
    for number in range(20):
        rows = images[8 * (number % 8) : 8 * (number % 8) + 8].astype(np.float32)
        weights, state = step(weights, state, jnp.asarray(rows))
        x = torch.tensor(rows)
        torchs.zero_grad()
        ((torch.tanh(x @ parameters[0]) @ parameters[1] - x[:, :1]) ** 2).mean().backward()
        torchs.step()
    for ours, theirs in zip(weights.values(), parameters, strict=True):
        np.testing.assert_allclose(np.asarray(ours), theirs.detach().numpy(), rtol=0, atol=2e-5)
        assert np.abs(np.asarray(ours) - first.mean()).max() > 0.1


def test_among_optaxs_own() -> None:
    gradients = on_device(tree())
    mask = jax.tree.map(lambda leaf: leaf.ndim == 4, gradients)
    masked = optax.masked(z_score(select="all"), mask)
    found, _ = masked.update(gradients, masked.init(gradients))
    assert abs(float(found["Conv_0"]["kernel"].std()) - 1) < 1e-6
    assert (found["Dense_0"]["kernel"] == gradients["Dense_0"]["kernel"]).all()
    labels = jax.tree.map(lambda leaf: "z" if leaf.ndim == 4 else "none", gradients)
    several = optax.multi_transform({"z": z_score(), "none": optax.identity()}, labels)
    same, _ = several.update(gradients, several.init(gradients))
    assert jax.tree.all(jax.tree.map(lambda one, two: (one == two).all(), same, found))
    # Once a step, on the mean of what is accumulated.
    several = optax.MultiSteps(z_score(), every_k_schedule=2)
    state = several.init(gradients)
    _, state = several.update(gradients, state)
    found, _ = several.update(jax.tree.map(lambda leaf: 3 * leaf, gradients), state)
    expected = exact(np.asarray(gradients["Dense_0"]["kernel"]))
    np.testing.assert_allclose(np.asarray(found["Dense_0"]["kernel"]), expected, rtol=0, atol=1e-6)
    # One tree for each of several nets.
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 5 * leaf]), gradients)
    each = jax.vmap(lambda tree: z_score().update(tree, optax.EmptyState())[0])(stacked)
    for row in range(2):
        np.testing.assert_allclose(each["Dense_0"]["kernel"][row], expected, rtol=0, atol=1e-6)


def test_an_epsilon_that_is_scheduled() -> None:
    gradients = on_device(tree())
    injected = optax.inject_hyperparams(z_score, static_args=("axis", "correction"))
    transform = injected(eps=lambda count: 0.5 * count, correction=1)
    state = transform.init(gradients)
    update = jax.jit(transform.update)
    for eps in (0.0, 0.5, 1.0):
        found, state = update(gradients, state)
        expected = exact(np.asarray(gradients["Dense_0"]["kernel"]), eps=eps, correction=1)
        np.testing.assert_allclose(found["Dense_0"]["kernel"], expected, rtol=0, atol=1e-6)


SHARDED = """
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from znorm.integrations.optax import z_score

assert len(jax.devices()) == 4
g = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
g[:16] += 5  # each shard has statistics of its own
spread = NamedSharding(Mesh(np.array(jax.devices()), ("devices",)), PartitionSpec("devices"))
found, _ = jax.jit(z_score().update)({"w": jax.device_put(g, spread)}, optax.EmptyState())
assert found["w"].sharding.is_equivalent_to(spread, 2), found["w"].sharding
d = g.astype(np.float64)
error = np.abs(np.asarray(found["w"]) - (d - d.mean()) / d.std()).max()
assert error < 1e-6, error
"""


def test_statistics_of_a_sharded_array_are_those_of_all_of_it() -> None:
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    done = subprocess.run(
        [sys.executable, "-c", SHARDED], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_version_that_is_not_tested_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(versions.TESTED, "optax", ("0.0", "0.1"))
    versions.warn_if_untested.cache_clear()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        z_score()
        z_score()
    versions.warn_if_untested.cache_clear()
    assert len(found) == 1
