"""Denoising diffusion as a hierarchical variational autoencoder of Gaussian data.

    q(x_t | x_{t-1}) = Normal(√(1 - β_t) x_{t-1}, √β_t),   t = 1, ..., 20,   x_0 ~ Normal(1.5, 0.5),
    p(x_20) = Normal(0, 1),   p(x_{t-1} | x_t) = Normal(a_t x_t + b_t, s_t),   a, b, s learned,
    L = E_q[log p(x_20) + Σ_t log p(x_{t-1} | x_t) - log q(x_t | x_{t-1})].

The guide, which adds the noise, has no parameters.

References: q(x_t) = Normal(1.5 √A_t, √(1 - 0.75 A_t)) with A_t = Π_{s<=t} (1 - β_s), so that q(x_{t-1} | x_t) is
linear and Gaussian, and the best p has these factors. There -L is the entropy of the data and what is left of them
at the end,
    -L* = ½ log(2π e 0.25) + KL(q(x_20) || Normal(0, 1)),
and p draws x_0 by the chain a, b, s from Normal(0, 1), whose mean and deviation are computed below.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax

import vipl
from vipl.zoo import Number, Outcome

PAPER = "Sohl-Dickstein et al. (2015), eq. (10)-(14); Ho, Jain and Abbeel (2020), eq. (3)"
OBJECTIVE = "the negative evidence lower bound of a chain of latents, minimized in the reverse process"

STEPS, MEAN, SD = 20, 1.5, 0.5
BETAS = np.linspace(0.02, 0.3, STEPS)


@vipl.gen
def forward(x):
    """Adds noise: x_1, ..., x_20."""

    def step(x, beta):
        return vipl.sample("x", dist.Normal(jnp.sqrt(1 - beta) * x, jnp.sqrt(beta))), None

    jax.lax.scan(step, x, jnp.float32(BETAS))


@vipl.gen
def reverse(theta):
    """Takes noise away: x_20, ..., x_1 in a scan that runs backwards, and x_0."""

    def step(later, inputs):
        a, b, log_s = inputs
        return vipl.sample("x", dist.Normal(a * later + b, jnp.exp(log_s))), None

    inner = {name: theta[name][1:] for name in ("a", "b", "log_s")}
    inputs = [jnp.append(inner[name], 0.0) for name in ("a", "b", "log_s")]  # x_20: mean 0, deviation 1
    x, _ = jax.lax.scan(step, jnp.zeros(()), tuple(inputs), reverse=True)
    vipl.sample("x0", dist.Normal(theta["a"][0] * x + theta["b"][0], jnp.exp(theta["log_s"][0])))


@vipl.expectation
def nelbo(theta):
    """-L, with fresh data in each draw."""
    x = vipl.sample("data", dist.Normal(MEAN, SD))
    return -vipl.objectives.elbo(reverse(theta), forward(x), {"x0": x})


def exact():
    """The factors a, b, s of the exact reverse process, by conditioning Gaussians; and -L*."""
    left = np.cumprod(1 - BETAS)
    mean, variance = MEAN * np.sqrt(np.append(1.0, left)), 1 - (1 - SD**2) * np.append(1.0, left)
    a = np.sqrt(1 - BETAS) * variance[:-1] / variance[1:]
    b = mean[:-1] - a * mean[1:]
    s = np.sqrt(variance[:-1] * BETAS / variance[1:])
    divergence = 0.5 * (variance[-1] + mean[-1] ** 2 - 1 - np.log(variance[-1]))
    return a, b, s, 0.5 * np.log(2 * np.pi * np.e * SD**2) + divergence


def run(progress: bool = True) -> Outcome:
    """1000 steps of Adam; tolerances: 5 standard errors and 0.005 for the fit."""
    key = jax.random.key(0)
    a, b, s, best = exact()
    mean, variance = 0.0, 1.0
    for t in reversed(range(STEPS)):
        mean, variance = a[t] * mean + b[t], a[t] ** 2 * variance + s[t] ** 2

    start = {"a": jnp.ones(STEPS), "b": jnp.zeros(STEPS), "log_s": jnp.log(jnp.float32(BETAS)) / 2}
    adam = optax.adam(optax.cosine_decay_schedule(0.03, 1000))
    options = {"key": key, "num_samples": 64, "maximize": False, "progress": progress}
    fit = vipl.fit(nelbo, start, adam, num_steps=1000, **options)
    estimates = jax.jit(jax.vmap(lambda key: nelbo.estimate(key, fit.params)))(jax.random.split(key, 200_000))
    error = float(estimates.std()) / 200_000**0.5
    drawn = vipl.predict(key, reverse(fit.params), 20_000)
    numbers = [
        Number("negative bound", float(estimates.mean()), best, 5 * error + 0.005),
        Number("mean of what the model draws", float(drawn["x0"].mean()), mean, 0.04),
        Number("deviation of what the model draws", float(drawn["x0"].std()), variance**0.5, 0.03),
    ]

    def draw(figure):
        left, right = figure.subplots(1, 2)
        time = np.arange(STEPS + 1)
        paths = np.column_stack([drawn["x0"], drawn["x"]])
        left.plot(time, paths[:30].T, color="C0", lw=0.5)
        for q in (0.025, 0.975):
            left.plot(time, np.quantile(paths, q, axis=0), color="k", label="95 % of draws" if q < 0.5 else None)
        left.set(xlabel="step t of the diffusion", ylabel="x_t", title="Drawn from right to left")
        right.hist(drawn["x0"], 60, density=True, alpha=0.5, label="drawn by the model")
        grid = np.linspace(-1, 4, 200)
        right.plot(grid, np.exp(dist.Normal(MEAN, SD).log_prob(grid)), "k", label="law of the data")
        right.set(xlabel="x_0", ylabel="density", title="What is generated", ylim=(0, 1))
        for axes in (left, right):
            axes.legend(loc="upper left", fontsize=8)

    return Outcome(numbers, draw)
