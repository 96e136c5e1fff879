"""The overhead of the core: a gradient step of a VAE the size of the digits, and 200 scalar sites."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

import vipl
from benchmarks.measure import Case
from benchmarks.workloads import vae
from vipl import sample

PIXELS, BATCH = 64, 64


def cases(quick: bool) -> list[Case]:
    """The step, and the sites."""
    del quick
    x = (jax.random.uniform(jax.random.key(1), (BATCH, PIXELS)) < 0.4).astype(jnp.int32)
    step = {"vipl": vae.elbo.estimate, "handwritten": vae.elbo_by_hand}
    return [Case("core", "VAE step, 64-200-10, batch 64", step, (vae.parameters(PIXELS), x)), *many_sites()]


def many_sites(n: int = 200) -> list[Case]:
    """One scalar site after another, against a draw of all at once."""

    @vipl.expectation
    def objective(loc):
        return sum(sample(f"x{i}", dist.Normal(loc[i], 1.0)) ** 2 for i in range(n))

    def vector(key, loc):
        return jnp.sum((loc + jax.random.normal(key, (n,))) ** 2)

    def scalars(key, loc):
        eps = jax.random.normal(key, (n,))
        return sum((loc[i] + eps[i]) ** 2 for i in range(n))

    loc = (jnp.linspace(-1.0, 1.0, n),)
    twins = {"one vector": vector, "each scalar used by itself": scalars}
    return [
        Case("core", f"{n} scalar sites; by hand: {name}", {"vipl": objective.estimate, "handwritten": twin}, loc)
        for name, twin in twins.items()
    ]
