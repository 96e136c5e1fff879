"""Natural-gradient Bayesian learning of a linear model and of a network.

    w ~ Normal(0, I),   y ~ Normal(X w, ½)   or   Bernoulli(logits=network(w, x)),   q(w) = Normal(m, Λ^-½), Λ diagonal.

With g_m and g_σ the gradients of the evidence lower bound in mean and deviation, a natural-gradient step is
    Λ ← Λ (1 + δ + δ² / 2),   δ = -ρ g_σ σ,       m ← m + ρ g_m / Λ:
Newton's method with averaged derivatives, as g_σ = σ E[∂² log p] + 1 / σ; the last term of Λ keeps it positive.

References: the linear model has X = [1, t], t = 0..4, y = (.1, .9, 2.2, 2.8, 4.1). Its posterior is Normal with the
precision matrix P = I + 4 XᵀX and the mean P⁻¹ 4 Xᵀy. The best q of diagonal covariance has this mean and Λ = diag P,
and its bound is below the evidence by KL = ½ (log Π_i P_ii - log det P); computed below in NumPy's double precision.
The two moons do not overlap: nearly all held-out points can be classified correctly (a line reaches 0.88).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

import vipl
from vipl.zoo import Number, Outcome

PAPER = "Khan et al. (2018), Weight-perturbation in Adam, eq. (5)-(6); Lin, Schmidt and Khan (2020), eq. (9)"
OBJECTIVE = "the evidence lower bound, by natural gradients in mean and precision"

INPUTS, TARGETS = np.stack([np.ones(5), np.arange(5.0)], 1), np.array([0.1, 0.9, 2.2, 2.8, 4.1])
HIDDEN = 8
SIZE = 4 * HIDDEN + 1


def moons(seed: int, n: int = 200):
    """Two half circles with noise of 0.1: points f[n, 2] and labels i[n]."""
    rng = np.random.RandomState(seed)
    angle, label = np.pi * rng.rand(n), np.arange(n) % 2
    x = np.where(label == 0, np.cos(angle), 1 - np.cos(angle))
    y = np.where(label == 0, np.sin(angle), 0.5 - np.sin(angle))
    return (np.stack([x, y], 1) + 0.1 * rng.randn(n, 2)).astype(np.float32), label


@vipl.gen
def linear(inputs):
    """Linear regression with the noise variance 1/4."""
    w = vipl.sample("w", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    vipl.sample("y", dist.Normal(inputs @ w, 0.5).to_event(1))


@vipl.gen
def network(inputs):
    """Logistic regression on the outputs of one hidden layer, whose weights have standard deviation 3."""
    w = vipl.sample("w", dist.Normal(jnp.zeros(SIZE), 1.0).to_event(1))
    vipl.sample("y", dist.Bernoulli(logits=logits(w, inputs)).to_event(1))


def logits(w, inputs):
    """The network, from all its weights in one vector."""
    hidden = jnp.tanh(3.0 * (inputs @ w[: 2 * HIDDEN].reshape(2, HIDDEN) + w[2 * HIDDEN : 3 * HIDDEN]))
    return 3.0 * (hidden @ w[3 * HIDDEN : 4 * HIDDEN] + w[-1])


@vipl.gen
def guide(mean, sd):
    """Independent Gaussians."""
    vipl.sample("w", dist.Normal(mean, sd).to_event(1))


def learn(program, data, start, rates, num_samples):
    """Natural gradients from the mean `start` and Λ = 10: m, Λ^-½, the bounds on the way, and the objective."""
    elbo = vipl.expectation(lambda mean, sd: vipl.objectives.elbo_with_kl(program, guide(mean, sd), data))

    def step(state, inputs):
        (mean, precision), (key, rate) = state, inputs
        sd = precision**-0.5
        bound, (of_mean, of_sd) = elbo.value_and_grad(key, mean, sd, num_samples=num_samples, argnums=(1, 2))
        delta = -rate * of_sd * sd
        precision = precision * (1 + delta + delta**2 / 2)
        return (mean + rate * of_mean / precision, precision), bound

    inputs = (jax.random.split(jax.random.key(0), len(rates)), rates)
    run_all = jax.jit(lambda: jax.lax.scan(step, (start, jnp.full_like(start, 10.0)), inputs))
    (mean, precision), bounds = run_all()
    return mean, precision**-0.5, bounds, elbo


def run(progress: bool = True) -> Outcome:
    """150 steps of the linear model; its tolerances are 5 standard errors of the last steps. 500 of the network."""
    rates = 0.8 / (1 + jnp.maximum(jnp.arange(150.0) - 50, 0) / 5)
    x = jnp.asarray(INPUTS, "float32")
    mean, sd, _, elbo = learn(linear(x), {"y": TARGETS}, jnp.zeros(2), rates, 1000)
    estimates = jax.vmap(lambda key: elbo.estimate(key, mean, sd))(jax.random.split(jax.random.key(1), 200_000))

    precision = np.eye(2) + 4 * INPUTS.T @ INPUTS
    covariance = INPUTS @ INPUTS.T + 0.25 * np.eye(5)
    exact = np.linalg.solve(precision, 4 * INPUTS.T @ TARGETS)
    fit = TARGETS @ np.linalg.solve(covariance, TARGETS)
    evidence = -0.5 * (fit + np.linalg.slogdet(2 * np.pi * covariance)[1])
    best = evidence - 0.5 * (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1])
    numbers = [
        *[Number(f"linear: mean {i}", float(mean[i]), exact[i], 0.005) for i in range(2)],
        *[
            Number(f"linear: variance {i}", float(sd[i] ** 2), 1 / precision[i, i], 0.03 / precision[i, i])
            for i in (0, 1)
        ],
        Number("linear: bound", float(estimates.mean()), best, 5 * float(estimates.std()) / 200_000**0.5),
    ]

    points, labels = moons(0)
    start = 0.5 * jax.random.normal(jax.random.key(2), (SIZE,))
    rates = 0.1 / (1 + jnp.arange(500.0) / 100)
    center, spread, bounds, _ = learn(network(points), {"y": labels}, start, rates, 10)
    weights = jax.vmap(lambda key: guide(center, spread).simulate(key).choices["w"])(
        jax.random.split(jax.random.key(3), 200)
    )

    def probability(inputs):
        return jax.nn.sigmoid(jax.vmap(lambda w: logits(w, inputs))(weights)).mean(0)

    fresh, truth = moons(1, 2000)
    right = jnp.mean((probability(fresh) > 0.5) == truth)
    numbers.append(Number("moons: share of new points right", float(right), 1.0, 0.02))

    def draw(figure):
        left, right = figure.subplots(1, 2)
        left.plot(bounds)
        left.set(xlabel="step", ylabel="nats", title="Two moons: lower bound")
        grid = np.stack(np.meshgrid(np.linspace(-1.5, 2.5, 60), np.linspace(-1.2, 1.7, 60)), -1)
        shades = right.contourf(
            *grid.transpose(2, 0, 1), probability(grid.reshape(-1, 2)).reshape(60, 60), 20, cmap="RdBu"
        )
        right.scatter(*points.T, c=labels, s=9, cmap="RdBu", edgecolors="k", linewidths=0.4)
        right.set(xlabel="first coordinate", ylabel="second coordinate", title="Probability of the second class")
        figure.colorbar(shades, ax=right)

    return Outcome(numbers, draw)
