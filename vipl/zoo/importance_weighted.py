"""Importance-weighted bounds of one Gaussian latent variable.

    z ~ Normal(0, 1),   x | z ~ Normal(z, 1),   x = 1.5,   q(z) = Normal(0.5, 0.8),
    L_K = E[log (1/K) Σ_k p(x, z_k) / q(z_k)],   z_k ~ q.

x ~ Normal(0, √2), so that log p(x) = -1.828012 in closed form. L_1 follows from Gaussian moments; L_2 to L_50 were
computed by Gauss-Hermite quadrature (K = 2) and by convolving the law of one weight on a grid.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

import vipl
from vipl.zoo import Number, Outcome

PAPER = "Burda, Grosse and Salakhutdinov (2016), Importance weighted autoencoders, eq. (8)"
OBJECTIVE = "the importance-weighted bounds L_K, K = 1 to 50"

REFERENCE = {1: -1.907082, 2: -1.860658, 5: -1.839758, 10: -1.833699, 50: -1.829122}
LOG_EVIDENCE = -1.828012


@vipl.gen
def model():
    """One latent, one datum."""
    z = vipl.sample("z", dist.Normal(0.0, 1.0))
    vipl.sample("x", dist.Normal(z, 1.0))


@vipl.gen
def guide():
    """Too narrow, and beside the posterior Normal(0.75, 0.71)."""
    vipl.sample("z", dist.Normal(0.5, 0.8))


def bound(num_particles: int) -> vipl.Expectation:
    """L_K as an objective of no arguments."""
    return vipl.expectation(lambda: vipl.objectives.iwelbo(model(), guide(), {"x": 1.5}, num_particles=num_particles))


def run(progress: bool = True) -> Outcome:
    """Estimates each bound with 200,000 sets of particles; the tolerance is 5 standard errors."""
    key = jax.random.key(0)
    numbers = []
    for k, reference in REFERENCE.items():
        estimates = jax.vmap(bound(k).estimate)(jax.random.split(key, 200_000))
        error = jnp.std(estimates) / len(estimates) ** 0.5
        numbers.append(Number(f"L_{k}", float(jnp.mean(estimates)), reference, 5 * float(error)))

    def draw(figure):
        axes = figure.subplots()
        axes.plot(list(REFERENCE), [n.reached for n in numbers], "o", label="reached")
        axes.plot(list(REFERENCE), list(REFERENCE.values()), "k_", markersize=16, label="by quadrature")
        axes.axhline(LOG_EVIDENCE, color="gray", label="log evidence")
        axes.set(xscale="log", xlabel="particles K", ylabel="nats", title="Importance-weighted bounds")
        axes.legend()

    return Outcome(numbers, draw)
