"""Spike-and-slab sparse regression, its inclusions summed out.

    s_j ~ Bernoulli(0.3),   w_j ~ Normal(0, 1),   y ~ Normal(X (s w), ½),
    q(s, w) = Π_j Bernoulli(s_j; γ_j) Normal(w_j; s_j μ_j, σ_j^s_j).

The slab's weight depends on its inclusion; the six inclusions are summed jointly (64 values), the weights are
reparametrized.

References: X are the columns 1 to 6 of the Hadamard matrix of order 8, so that XᵀX = 8 I, and the posterior is a
product over columns that q contains. With b_j = 4 x_jᵀy, the Bayes factor of column j is B_j = 33^-½ exp(½ b_j² / 33),
    γ_j = 0.3 B_j / (0.7 + 0.3 B_j),   log p(y) = Σ_i log Normal(y_i; 0, ½) + Σ_j log(0.7 + 0.3 B_j).
At the optimum the bound has no variance. One Bernoulli for all columns, or a weight that does not depend on its
inclusion, misses the evidence.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax

import vipl
from vipl import Enumerate
from vipl.zoo import Number, Outcome

PAPER = "Titsias and Lázaro-Gredilla (2011), Spike and slab variational inference, eq. (7)"
OBJECTIVE = "the evidence lower bound, with pairs (inclusion, weight) as the factors of the guide"

HADAMARD = np.array([[1, 1], [1, -1]])
COLUMNS = np.kron(np.kron(HADAMARD, HADAMARD), HADAMARD)[:, 1:7]
TRUTH = np.array([1.0, 0.5, 0.2, 0.0, 0.0, 0.0])
Y = COLUMNS @ TRUTH + np.array([0.3, -0.2, 0.1, 0.4, -0.3, 0.2, -0.1, -0.4])


@vipl.gen
def model():
    """Six columns, eight observations."""
    s = jax.vmap(lambda: vipl.sample("s", dist.Bernoulli(0.3)), axis_size=6)()
    w = vipl.sample("w", dist.Normal(jnp.zeros(6), 1.0).to_event(1))
    vipl.sample("y", dist.Normal(COLUMNS @ (s * w), 0.5).to_event(1))


@vipl.gen
def guide(phi):
    """Where a column is excluded, its weight has the prior."""
    s = jax.vmap(lambda logit: vipl.sample("s", dist.Bernoulli(logits=logit), Enumerate()))(phi["logit"])
    scale = jnp.where(s == 1, jnp.exp(phi["log_scale"]), 1.0)
    vipl.sample("w", dist.Normal(s * phi["loc"], scale).to_event(1))


@vipl.expectation
def bound(phi):
    """The evidence lower bound with the gradient of Roeder et al., which has no variance at the optimum."""
    return vipl.objectives.sticking_the_landing(model(), guide(phi), {"y": Y})


def run(progress: bool = True) -> Outcome:
    """1000 steps of Adam; the tolerance is what they leave, 1e-3."""
    key = jax.random.key(0)
    b = 4 * COLUMNS.T @ Y
    factor = np.exp(b**2 / 66) / 33**0.5
    exact = 0.3 * factor / (0.7 + 0.3 * factor)
    evidence = -2 * Y @ Y - 4 * np.log(2 * np.pi * 0.25) + np.log(0.7 + 0.3 * factor).sum()

    start = {"logit": jnp.zeros(6), "loc": jnp.zeros(6), "log_scale": jnp.zeros(6)}
    adam = optax.adam(optax.cosine_decay_schedule(0.3, 1000), b2=0.95)
    fit = vipl.fit(bound, start, adam, key=key, num_steps=1000, num_samples=4, progress=progress)
    reached = jax.nn.sigmoid(fit.params["logit"])
    numbers = [Number(f"inclusion of column {j + 1}", float(reached[j]), exact[j], 1e-3) for j in range(6)]
    numbers.append(Number("log evidence", float(bound.estimate(key, fit.params, num_samples=100)), evidence, 1e-3))

    def draw(figure):
        left, right = figure.subplots(1, 2)
        columns = np.arange(1, 7)
        left.bar(columns, reached, label="reached")
        left.plot(columns, exact, "k_", markersize=24, label="exact")
        left.set(xlabel="column", ylabel="probability of inclusion", title="Which columns matter")
        mean, sd = fit.params["loc"], jnp.exp(fit.params["log_scale"])
        right.errorbar(columns, mean, 2 * sd, fmt="o", label="slab, mean and 2 sd")
        right.plot(columns, reached * mean, "s", label="coefficient, posterior mean")
        right.plot(columns, TRUTH, "k_", markersize=24, label="that made the data")
        right.set(xlabel="column", ylabel="coefficient", title="Their coefficients")
        for axes in (left, right):
            axes.legend()

    return Outcome(numbers, draw)
