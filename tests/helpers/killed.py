"""`python -m tests.helpers.killed FOLDER FILE`: a fit with checkpoints in FOLDER, whose result goes to FILE.

It writes a checkpoint after each step, so that a process that is killed at any moment is killed at some moment of one.
"""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax

import vipl

STEPS = 40


@vipl.expectation(has_aux=True)
def objective(params, state, batch):
    """Has metrics, a state, and draws."""
    x = vipl.sample("x", dist.Normal(params["m"], 1.0).expand([3]).to_event(1))
    return jnp.sum((x - batch) ** 2), ({"mean": 0.9 * state["mean"] + 0.1 * jnp.mean(x), "n": state["n"] + 1}, {"x": x})


def batches():
    """A stream without length."""
    rng = np.random.default_rng(5)
    while True:
        yield rng.normal(size=3).astype(np.float32)


def run(**options):
    """The fit."""
    params = {"m": jnp.zeros(3), "key": jax.random.key(4), "n": 2, "none": jnp.zeros((2, 0))}
    return vipl.fit(
        objective,
        params,
        optax.chain(optax.clip(5.0), optax.adam(0.05)),
        key=jax.random.key(1),
        data=batches(),
        num_steps=STEPS,
        num_samples=2,
        maximize=False,
        progress=False,
        state={"mean": 0.0, "n": 0},
        average=0.5,
        **options,
    )


def numbers(fit):
    """All that a fit has, as NumPy arrays."""
    leaves = jax.tree.leaves(fit)
    is_key = [jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key) for x in leaves]
    return [np.asarray(jax.random.key_data(x) if k else x) for x, k in zip(leaves, is_key, strict=True)]


if __name__ == "__main__":
    folder, file = sys.argv[1:]
    np.savez(file, *numbers(run(checkpoint=folder, checkpoint_every=0.0)))
