"""Bayesian neural networks by natural gradients in the manner of IVON.

    w ~ Normal(0, I),   y_n | w ~ Normal(f_w(x_n), σ),   q(w) = Normal(m, diag(s²)),   P = 1 / s² the precision.

With g_m and g the gradients of the loss -E_q[log p(w, y) - log q(w)] in m and in log s, the diagonal of the Hessian of
-log p(w, y) has the mean P (1 + g) under q (Bonnet and Price). IVON follows it with a rate ρ, corrected so that P stays
positive, and divides the averaged gradient, here ḡ ← 0.9 ḡ + 0.1 g_m, by it:

    P ← P (1 + ρ g + (ρ g)² / 2),   m ← m - ρ ḡ / P.

First f_w(x) = w_2 tanh(w_1 x) learns from 9 points, σ = 0.3. The references are bound, m and s where the loss is least;
its expectation is summed by Gauss-Hermite quadrature with 40 x 40 points, and minimized by Adam from the same start, in
plain JAX. The posterior has two modes, w and -w; both fits are at the one near which they begin. Then a network with 16
hidden units, 49 weights, learns from 60 points, σ = 0.2: of fresh data, 95 % should be in the 95 % intervals of its
predictions, about.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax

import vipl
from vipl.zoo import Number, Outcome

PAPER = "Shen et al. (2024), Variational learning is effective for large deep networks (IVON), algorithm 1"
OBJECTIVE = "the evidence lower bound, by natural gradients with momentum"

X = jnp.linspace(-2.0, 2.0, 9)
Y = jnp.array([-1.05, -1.32, -0.71, -0.83, 0.22, 0.45, 1.01, 0.78, 1.21])


def small(w, x):
    """One hidden unit."""
    return w[1] * jnp.tanh(w[0] * x)


def large(w, x):
    """Sixteen hidden units; the weights of the first layer have the standard deviation 2 in the prior."""
    return jnp.tanh(2 * (x[:, None] * w[:16] + w[16:32])) @ w[32:48] + w[48]


def curve(rng, n):
    """Data for the large network: x in two intervals, and sin 1.5 x with noise of 0.2."""
    x = np.concatenate([rng.uniform(-3, -0.7, n // 2), rng.uniform(0.7, 3, n // 2)])
    return jnp.asarray(x, "float32"), jnp.asarray(np.sin(1.5 * x) + 0.2 * rng.randn(n), "float32")


@vipl.gen
def model(network, x, size, noise):
    """Weights and data."""
    w = vipl.sample("w", dist.Normal(jnp.zeros(size), 1.0).to_event(1))
    vipl.sample("y", dist.Normal(network(w, x), noise).to_event(1))


@vipl.gen
def guide(phi):
    """Independent weights."""
    vipl.sample("w", dist.Normal(phi["m"], jnp.exp(phi["log_s"])).to_event(1))


def ivon(rate, momentum=0.9):
    """An optax optimizer of m and log s; ρ = rate(step)."""

    def init(params):
        return jnp.zeros_like(params["m"]), 0

    def update(updates, state, params):
        mean, step = state
        mean = momentum * mean + (1 - momentum) * updates["m"]
        delta = rate(step) * updates["log_s"]
        log_s = -0.5 * jnp.log(1 + delta + delta**2 / 2)
        variance = jnp.exp(2 * (params["log_s"] + log_s))
        return {"m": -rate(step) * mean * variance, "log_s": log_s}, (mean, step + 1)

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


def learn(program, y, start, num_steps, progress):
    """A fit of q by natural gradients, 50 draws a step."""
    bound = vipl.expectation(lambda phi: vipl.objectives.elbo_with_kl(program, guide(phi), {"y": y}))
    options = {"key": jax.random.key(0), "num_steps": num_steps, "num_samples": 50, "progress": progress}
    return vipl.fit(bound, start, ivon(optax.cosine_decay_schedule(0.1, num_steps)), **options)


def log_joint(w):
    """Of weights and data of the small network."""
    return dist.Normal(0.0, 1.0).log_prob(w).sum() + dist.Normal(small(w, X), 0.3).log_prob(Y).sum()


@vipl.expectation
def by_quadrature(phi):
    """The bound of the small network without draws."""
    x, weights = np.polynomial.hermite_e.hermegauss(40)
    e = jnp.asarray(np.stack(np.meshgrid(x, x), -1).reshape(-1, 2), "float32")
    mean = jax.vmap(log_joint)(phi["m"] + jnp.exp(phi["log_s"]) * e) @ np.outer(weights, weights).ravel() / (2 * np.pi)
    return mean + jnp.sum(phi["log_s"] + 0.5 * jnp.log(2 * jnp.pi * jnp.e))


def run(progress: bool = True) -> Outcome:
    """400 steps beside 1000 of Adam, tolerances for the noise of 50 draws a step; then 2000 of the large network."""
    key, start = jax.random.key(0), {"m": jnp.array([0.5, 0.5]), "log_s": jnp.full(2, -1.5)}
    phi = learn(model(small, X, 2, 0.3), Y, start, 400, progress).params
    adam = optax.adam(optax.cosine_decay_schedule(0.03, 1000))
    exact = vipl.fit(by_quadrature, start, adam, key=key, num_steps=1000, progress=progress)
    best = exact.params
    numbers = [Number("bound", float(by_quadrature.estimate(key, phi)), float(exact.values[-1]), 0.002)]
    for i in range(2):
        s, of_best = float(jnp.exp(phi["log_s"][i])), float(jnp.exp(best["log_s"][i]))
        numbers.append(Number(f"mean of w_{i + 1}", float(phi["m"][i]), float(best["m"][i]), 0.01))
        numbers.append(Number(f"sd of w_{i + 1}", s, of_best, 0.03 * of_best))

    x, y = curve(np.random.RandomState(0), 60)
    start = {"m": 0.5 * jax.random.normal(key, (49,)), "log_s": jnp.full(49, -2.0)}
    fit = learn(model(large, x, 49, 0.2), y, start, 2000, progress)
    w = fit.params["m"] + jnp.exp(fit.params["log_s"]) * jax.random.normal(key, (400, 49))

    def interval(x):
        predictions = jax.vmap(large, (0, None))(w, x)
        predictions += 0.2 * jax.random.normal(key, predictions.shape)
        return jnp.quantile(predictions, jnp.array([0.025, 0.5, 0.975]), axis=0)

    fresh, truth = curve(np.random.RandomState(1), 4000)
    low, _, high = interval(fresh)
    numbers.append(Number("share of fresh data in 95 %", float(jnp.mean((low < truth) & (truth < high))), 0.95, 0.03))

    def draw(figure):
        left, right = figure.subplots(1, 2)
        grid = jnp.stack(jnp.meshgrid(jnp.linspace(0, 3.5, 80), jnp.linspace(0.4, 2, 80)), -1)
        density = jnp.exp(jax.vmap(jax.vmap(log_joint))(grid) - log_joint(phi["m"]))
        left.contour(*grid.transpose(2, 0, 1), density, colors="gray", linewidths=0.7)
        angle = jnp.linspace(0, 2 * jnp.pi, 100)
        circle = 2 * jnp.stack([jnp.cos(angle), jnp.sin(angle)], 1)
        for name, p, style in (("natural gradients", phi, "C1-"), ("quadrature", best, "k--")):
            left.plot(*(p["m"] + jnp.exp(p["log_s"]) * circle).T, style, label=name)
        left.set(xlabel="w_1", ylabel="w_2", title="Two weights: posterior, two sd of q")
        at = jnp.linspace(-4, 4, 200)
        low, middle, high = interval(at)
        right.fill_between(at, low, high, alpha=0.3, label="95 % of predictions")
        right.plot(at, middle, label="median")
        right.plot(x, y, "k.", markersize=4, label="data")
        right.set(xlabel="x", ylabel="y", title="49 weights", ylim=(-3, 3))
        left.legend()
        right.legend()

    return Outcome(numbers, draw)
