"""Objectives of disentanglement, beta-, TC-, DIP- and InfoVAE, and posterior collapse, in the linear Gaussian case.

    z ~ Normal(0, I),   x | z ~ Normal(W z, √0.3),   q(z | x) = Normal(M x, S),   three latents, S diagonal,
    L = E[log p(x | z)] - β E[KL(q(z | x) || p(z))] - τ TC(q(z)) - δ |C - I|² - ι KL(q(z) || p(z)),

q(z) = Normal(0, C) is the mean of q(z | x) over Gaussian data of covariance Σ, C = M Σ Mᵀ + S², and its total
correlation TC = ½ (Σ_j log C_jj - log det C). InfoVAE with α and λ is β = 1 - α, ι = α + λ - 1.

References: let λ_i be the eigenvalues of Σ. Where C = I and W = Σ Mᵀ, direction i has the distortion λ_i r_i, with r_i
the share of its latent's variance that is noise, and its divergence is -½ log r_i. The best r_i is min(1, 0.3 β / λ_i),
    L* = Σ_i [-½ log(2π 0.3) - ½ λ_i r_i / 0.3 + ½ β log r_i].
The terms of C vanish there and are never negative, and scaling z changes divergences alone, which are least at C = I:
L* is the optimum for all τ, δ and ι. (A term of the wrong sign, or least elsewhere, misses it; one left out does not.)
Directions with λ_i <= 0.3 β collapse: r_i = 1, and W has no column for them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax

import vipl
from vipl.zoo import Number, Outcome

PAPER = (
    "Higgins et al. (2017); Chen et al. (2018); Kumar et al. (2018); Zhao et al. (2019); Lucas et al. (2019), sect. 4"
)
OBJECTIVE = "the evidence lower bound with weights on its divergence and on terms of the aggregate posterior"

NOISE, EIGENVALUES = 0.3, np.array([4.0, 1.0, 0.25])
HADAMARD = np.array([[1, 1], [1, -1]])
ROTATION = np.linalg.qr(np.random.RandomState(0).randn(3, 3))[0]
# Eight rows whose mean is zero and whose covariance has these eigenvalues: all that a linear model sees of data.
ROWS = (np.kron(np.kron(HADAMARD, HADAMARD), HADAMARD)[:, 1:4] * np.sqrt(EIGENVALUES)) @ ROTATION
COVARIANCE = ROWS.T @ ROWS / 8
WEIGHTS = {  # beta, tau, delta, iota
    "beta = 1": (1.0, 0.0, 0.0, 0.0),
    "beta = 2": (2.0, 0.0, 0.0, 0.0),
    "beta = 4": (4.0, 0.0, 0.0, 0.0),
    "TC": (1.0, 5.0, 0.0, 0.0),
    "DIP": (1.0, 0.0, 5.0, 0.0),
    "Info": (0.5, 0.0, 0.0, 4.5),
}


@vipl.gen
def model(decoder):
    """Eight rows of three numbers."""

    def row():
        z = vipl.sample("z", dist.Normal(jnp.zeros(3), 1.0).to_event(1))
        vipl.sample("x", dist.Normal(decoder @ z, NOISE**0.5).to_event(1))

    jax.vmap(row, axis_size=8)()


@vipl.gen
def guide(encoder, log_sd):
    """A linear encoder."""
    jax.vmap(lambda x: vipl.sample("z", dist.Normal(encoder @ x, jnp.exp(log_sd)).to_event(1)))(jnp.float32(ROWS))


def aggregate(params):
    """C, the covariance of q(z)."""
    return params["encoder"] @ jnp.float32(COVARIANCE) @ params["encoder"].T + jnp.diag(jnp.exp(2 * params["log_sd"]))


@vipl.expectation
def objective(params, weights):
    """L by row."""
    beta, of_tc, of_dip, of_info = weights
    q = guide(params["encoder"], params["log_sd"])
    bound = vipl.objectives.beta_elbo(model(params["decoder"]), q, {"x": ROWS}, beta) / 8
    c = aggregate(params)
    log_det = jnp.linalg.slogdet(c)[1]
    tc = 0.5 * (jnp.sum(jnp.log(jnp.diag(c))) - log_det)
    info = 0.5 * (jnp.trace(c) - 3 - log_det)
    return bound - of_tc * tc - of_dip * jnp.sum((c - jnp.eye(3)) ** 2) - of_info * info


def noise_shares(beta):
    """The best r_i."""
    return np.minimum(1.0, beta * NOISE / EIGENVALUES)


def run(progress: bool = True) -> Outcome:
    """One fit for each row of weights, compiled once; 0.02 is what a fit of 1000 steps leaves, and the draws' error."""
    key = jax.random.key(0)
    numbers, shares = [], {}
    start = {
        "decoder": 0.3 * jax.random.normal(key, (3, 3)),
        "encoder": 0.3 * jax.random.normal(jax.random.key(1), (3, 3)),
        "log_sd": jnp.zeros(3),
    }
    for name, weights in WEIGHTS.items():
        adam = optax.adam(optax.cosine_decay_schedule(0.03, 1000))
        options = {"key": key, "data": jnp.array(weights), "num_samples": 8, "progress": progress}
        params = vipl.fit(objective, start, adam, num_steps=1000, **options).params
        r = noise_shares(weights[0])
        best = (-0.5 * np.log(2 * np.pi * NOISE) - EIGENVALUES * r / (2 * NOISE) + weights[0] * np.log(r) / 2).sum()
        reached = objective.estimate(key, params, jnp.array(weights), num_samples=20_000)
        numbers.append(Number(f"{name}: objective", float(reached), best, 0.02))
        shares[name] = np.sort(jnp.exp(2 * params["log_sd"]) / jnp.diag(aggregate(params)))
        active = int((shares[name] < 0.95).sum())
        numbers.append(Number(f"{name}: latents that did not collapse", active, int((r < 1).sum()), 0.0))

    def draw(figure):
        axes = figure.subplots()
        for i, name in enumerate(WEIGHTS):
            at = i + np.array([-0.2, 0.0, 0.2])
            axes.bar(at, 1 - shares[name], width=0.18, color=f"C{i}")
            axes.plot(at, 1 - noise_shares(WEIGHTS[name][0]), "k_", markersize=12, label=None if i else "exact")
        axes.set_xticks(range(len(WEIGHTS)), list(WEIGHTS))
        axes.set(ylabel="share of variance that depends on x", title="The three latents of each objective")
        axes.legend(loc=(0.4, 0.85))

    return Outcome(numbers, draw)
