"""Variational Bayesian last layer of a regression network.

    w ~ Normal(0, I),   y_i | x_i, w ~ Normal(wᵀ φ(x_i), σ),   q(w) = Normal(m, L Lᵀ),
    L = Σ_i E_q[log p(y_i | x_i, w)] - KL(q(w) || p(w)),
maximized in the network φ, in σ and in q together, with a quadratic penalty on the network's weights; then in q.

References: given φ and σ the model is linear and Gaussian, so that the best q is the posterior, and L is then the log
evidence, of y ~ Normal(0, σ² I + Φ Φᵀ). It is computed below by linear algebra in double precision from the features
reached, as are the predictive mean and deviation at points far from the data and near them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
from flax import nnx

import vipl
from vipl.interop.flax import functional
from vipl.zoo import Number, Outcome

PAPER = "Harrison, Willes and Snoek (2024), Variational Bayesian last layers, theorem 1"
OBJECTIVE = "the evidence lower bound over the last layer, with the other layers as parameters"

RNG = np.random.RandomState(0)
X = np.concatenate([RNG.uniform(-3, -1, 30), RNG.uniform(1, 3, 30)]).astype(np.float32)
Y = (np.sin(2 * X) + 0.2 * RNG.randn(60)).astype(np.float32)
FEATURES = 6


class Network(nnx.Module):
    """One hidden layer, then the features φ."""

    def __init__(self, rngs):
        """Initializes both layers."""
        self.hidden, self.out = nnx.Linear(1, 20, rngs=rngs), nnx.Linear(20, FEATURES, rngs=rngs)

    def __call__(self, x):
        """f[n] -> f[n, 6]."""
        return jnp.tanh(self.out(jnp.tanh(self.hidden(2.0 * x[:, None]))))


START, APPLY = functional(Network(nnx.Rngs(0)))


@vipl.gen
def model(features, sigma):
    """Bayesian linear regression on features."""
    w = vipl.sample("w", dist.Normal(jnp.zeros(FEATURES), 1.0).to_event(1))
    vipl.sample("y", dist.Normal(features @ w, sigma).to_event(1))


@vipl.gen
def guide(mean, factor):
    """A Gaussian with any covariance; only the lower triangle of `factor` counts."""
    lower = jnp.tril(factor, -1) + jnp.diag(jnp.exp(jnp.diag(factor)))
    vipl.sample("w", dist.MultivariateNormal(mean, scale_tril=lower))


@vipl.expectation
def bound(q, network):
    """L, with a gradient in q that has no variance at the optimum."""
    program = model(APPLY(network["weights"])(jnp.asarray(X)), jnp.exp(network["log_sigma"]))
    return vipl.objectives.sticking_the_landing(program, guide(**q), {"y": Y})


@vipl.expectation
def objective(params):
    """L less the penalty, with its divergence in closed form."""
    network = params["network"]
    program = model(APPLY(network["weights"])(jnp.asarray(X)), jnp.exp(network["log_sigma"]))
    value = vipl.objectives.elbo_with_kl(program, guide(**params["q"]), {"y": Y})
    return value - 0.05 * sum(jnp.sum(x**2) for x in jax.tree.leaves(network["weights"]))


def run(progress: bool = True) -> Outcome:
    """1000 steps of Adam on all, 1500 on q; tolerances: 0.1 nat, 0.02 in what is predicted, for what they leave."""
    key = jax.random.key(0)
    start = {
        "network": {"weights": START, "log_sigma": 0.0},
        "q": {"mean": jnp.zeros(FEATURES), "factor": jnp.zeros((FEATURES, FEATURES))},
    }
    adam = optax.adam(optax.cosine_decay_schedule(0.03, 1000))
    fit = vipl.fit(objective, start, adam, key=key, num_steps=1000, num_samples=16, progress=progress)
    network, grid = fit.params["network"], np.linspace(-5, 5, 201, dtype=np.float32)
    adam = optax.adam(optax.cosine_decay_schedule(0.02, 1500))
    q = vipl.fit(bound, fit.params["q"], adam, key=key, data=network, num_steps=1500, progress=progress).params

    features, at = (np.asarray(APPLY(network["weights"])(jnp.asarray(x)), float) for x in (X, grid))
    variance = float(jnp.exp(2 * network["log_sigma"]))
    covariance = features @ features.T + variance * np.eye(60)
    evidence = -0.5 * (Y @ np.linalg.solve(covariance, Y) + np.linalg.slogdet(2 * np.pi * covariance)[1])
    precision = np.eye(FEATURES) + features.T @ features / variance
    exact_mean = at @ np.linalg.solve(precision, features.T @ Y / variance)
    exact_sd = np.sqrt(np.sum(at * np.linalg.solve(precision, at.T).T, 1))

    lower = jnp.tril(q["factor"], -1) + jnp.diag(jnp.exp(jnp.diag(q["factor"])))
    mean, sd = at @ np.asarray(q["mean"]), np.linalg.norm(at @ np.asarray(lower), axis=1)
    numbers = [Number("bound", float(bound.estimate(key, q, network, num_samples=2000)), evidence, 0.1)]
    for name, i in (("between the data", 100), ("in the data", 140)):
        numbers.append(Number(f"mean {name}", mean[i], exact_mean[i], 0.02))
        numbers.append(Number(f"deviation {name}", sd[i], exact_sd[i], 0.02))

    def draw(figure):
        axes = figure.subplots()
        axes.plot(X, Y, "ko", ms=3, label="data")
        axes.plot(grid, mean, label="mean")
        axes.fill_between(grid, mean - 2 * sd, mean + 2 * sd, alpha=0.3, label="2 sd of the mean")
        axes.plot(grid, exact_mean - 2 * exact_sd, "k:", grid, exact_mean + 2 * exact_sd, "k:")
        axes.plot([], [], "k:", label="2 sd, exact for these features")
        axes.set(xlabel="x", ylabel="y", title="Bayesian last layer")
        axes.legend()

    return Outcome(numbers, draw)
