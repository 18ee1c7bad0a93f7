"""optax: z_score as the first link of a chain, before Adam."""

import jax
import jax.numpy as jnp
import optax

from znorm.integrations.optax import z_score

keys = jax.random.split(jax.random.key(0), 3)
rows = jax.random.normal(keys[0], (256, 16))
labels = (rows[:, 0] > 0).astype(jnp.int32)
params = {
    "hidden": {"kernel": jax.random.normal(keys[1], (16, 32)) / 4, "bias": jnp.zeros(32)},
    "output": {"kernel": jax.random.normal(keys[2], (32, 2)) / 6, "bias": jnp.zeros(2)},
}


def loss_of(params, rows, labels):
    hidden = jax.nn.relu(rows @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    found = hidden @ params["output"]["kernel"] + params["output"]["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(found, labels).mean()


optimizer = optax.chain(z_score(), optax.adam(1e-3))
state = optimizer.init(params)


@jax.jit
def step(params, state, rows, labels):
    loss, gradients = jax.value_and_grad(loss_of)(params, rows, labels)
    updates, state = optimizer.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, loss


for epoch in range(5):
    for start in range(0, 256, 32):
        params, state, loss = step(
            params, state, rows[start : start + 32], labels[start : start + 32]
        )
    print(f"epoch {epoch}: loss {loss:.4f}")
