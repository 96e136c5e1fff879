"""Stein variational gradient descent and its mixture, beside a flow, on a banana.

    a ~ Normal(0, 1),   b | a ~ Normal(a², 1/2),   log evidence 0,
    x_i <- x_i + rate * mean_j [k(x_j, x_i) ∇log p(x_j) + ∇_{x_j} k(x_j, x_i)].

SVGD: with k(x, y) = ψ(x)·ψ(y), ψ = (1, a, b, a²), the direction at x_i is Σ_m ψ_m(x_i) mean_j [ψ_m ∇log p + ∇ψ_m](x_j),
zero at all particles (so many that their ψ span R⁴) only where these means are zero, as under p. With u = b - a²,
∇log p = (8 a u - a, -4 u): the second coordinate says mean u = mean u a = mean u a² = 0 and 4 mean u b = 1, the first
mean a = 0 and mean a² = 1. So the particles have the exact mean a² = 1, mean b = 1 and mean (b - a²)² = 1/4.

Mixture: the particles are (m, log s) of diagonal Gaussians, q = mean_i q_i, and E_{q_i}[log p - log q] stands for
log p(x_i). Its reference is the end of the same descent with expectations by Gauss-Hermite quadrature, 24 x 24 points;
a single Gaussian reaches -0.560659. Flow: a coupling layer with a quadratic shift contains p; bound 0, no variance.
Without the repulsion ∇k the particles fall together: mean (b - a²)² goes to 0.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax

import vipl
from vipl.zoo import Number, Outcome

PAPER = "Liu and Wang (2016), eq. (8); Liu and Wang (2018), Moment matching; Nalisnick and Smyth (2017), Stein mixtures"
OBJECTIVE = "log densities, or bounds, of interacting particles; the evidence lower bound of a flow"


@vipl.gen
def banana():
    """The target."""
    a = vipl.sample("a", dist.Normal(0.0, 1.0))
    vipl.sample("b", dist.Normal(a**2, 0.5))


@vipl.gen
def gaussian(theta):
    """A particle of the mixture."""
    vipl.sample("a", dist.Normal(theta[0], jnp.exp(theta[2])))
    vipl.sample("b", dist.Normal(theta[1], jnp.exp(theta[3])))


@vipl.gen
def flow(phi):
    """An affine layer, and a coupling layer whose shift is quadratic."""
    a = vipl.sample("a", dist.Normal(phi[0], jnp.exp(phi[1])))
    vipl.sample("b", dist.Normal(phi[2] + phi[3] * a + phi[4] * a**2, jnp.exp(phi[5])))


def stein(kernel):
    """An optax transformation: from the gradient of each particle to its direction."""

    def directions(grads, x):
        k, dk = jax.vmap(lambda x_i: jax.vmap(jax.value_and_grad(kernel), (0, None))(x, x_i))(x)
        return (k @ grads - dk.sum(1)) / len(x)  # minus, as the gradients are those of what is minimized

    return optax.stateless(directions)


def by_features(x, y):
    """Of a constant, a, b and a²."""
    return 1.0 + x @ y + x[0] ** 2 * y[0] ** 2


def by_distance(x, y):
    """A Gaussian kernel."""
    return jnp.exp(-jnp.sum((x - y) ** 2) / 0.6)


@vipl.expectation
def points(x):
    """The particles meet in the optimizer alone."""
    return jnp.sum(jax.vmap(lambda z: banana().assess({"a": z[0], "b": z[1]}).log_prob)(x))


def log_weight(theta, z):
    """Of the mixture: log p - log q."""
    log_q = jax.vmap(lambda one: gaussian(one).assess(z).log_prob)(theta)
    return banana().assess(z).log_prob - jax.nn.logsumexp(log_q) + jnp.log(len(theta))


@vipl.expectation
def mixture(theta):
    """The sum of the bounds of the components."""
    return jnp.sum(jax.vmap(lambda one: log_weight(theta, gaussian(one).simulate().choices))(theta))


@vipl.expectation
def by_quadrature(theta):
    """The same sum, without draws."""
    x, w = np.polynomial.hermite_e.hermegauss(24)
    e = jnp.stack(jnp.meshgrid(x, x), -1).reshape(-1, 2)
    z = theta[:, None, :2] + jnp.exp(theta[:, None, 2:]) * e
    values = jax.vmap(jax.vmap(lambda z: log_weight(theta, {"a": z[0], "b": z[1]})))(z)
    return jnp.sum(values @ np.outer(w, w).ravel()) / (2 * jnp.pi)


@vipl.expectation
def flow_bound(phi):
    """No noise in the gradient at the optimum."""
    return vipl.objectives.sticking_the_landing(banana(), flow(phi), {})


def run(progress: bool = True) -> Outcome:
    """50 points, 3 Gaussians twice, and a flow; tolerances are for the noise of the gradients."""
    key = jax.random.key(0)

    def fit(objective, params, steps, rate, *first, num_samples=1):
        adam = optax.chain(*first, optax.adam(optax.cosine_decay_schedule(rate, steps)))
        options = {"key": key, "num_steps": steps, "num_samples": num_samples, "progress": progress}
        return vipl.fit(objective, params, adam, **options).params

    x = fit(points, jax.random.normal(key, (50, 2)), 800, 0.1, stein(by_features))
    start = jnp.array([[-1.0, 1.0, -1.0, -1.0], [0.0, 0.0, -1.0, -1.0], [1.0, 1.0, -1.0, -1.0]])
    theta = fit(mixture, start, 400, 0.05, stein(by_distance), num_samples=20)
    exact = fit(by_quadrature, start, 400, 0.05, stein(by_distance))
    bound, best = (float(by_quadrature.estimate(key, t)) / 3 for t in (theta, exact))
    phi = fit(flow_bound, jnp.zeros(6), 400, 0.1, num_samples=20)
    log_weights = jax.vmap(lambda k: flow_bound.estimate(k, phi))(jax.random.split(key, 1000))
    numbers = [
        Number("SVGD: mean a²", float(jnp.mean(x[:, 0] ** 2)), 1.0, 1e-3),
        Number("SVGD: mean b", float(jnp.mean(x[:, 1])), 1.0, 1e-3),
        Number("SVGD: mean (b - a²)²", float(jnp.mean((x[:, 1] - x[:, 0] ** 2) ** 2)), 0.25, 1e-3),
        Number("mixture of 3: bound", bound, best, 0.005),
        Number("flow: bound", float(jnp.mean(log_weights)), 0.0, 1e-4),
        Number("flow: sd of the log weights", float(jnp.std(log_weights)), 0.0, 1e-4),
    ]

    def draw(figure):
        grid = jnp.meshgrid(jnp.linspace(-3, 3, 80), jnp.linspace(-2, 8, 80))
        density = jax.vmap(jax.vmap(lambda a, b: jnp.exp(banana().assess({"a": a, "b": b}).log_prob)))(*grid)
        e = jax.random.normal(key, (3, 100, 2))
        clouds = (theta[:, None, :2] + jnp.exp(theta[:, None, 2:]) * e).reshape(-1, 2)
        z = jax.vmap(lambda k: flow(phi).simulate(k).choices)(jax.random.split(key, 300))
        titles = "SVGD, 50 points", f"mixture of 3: bound {bound:.3f}", "flow: bound 0"
        draws = x, clouds, jnp.stack([z["a"], z["b"]], 1)
        for axes, title, d in zip(figure.subplots(1, 3, sharex=True, sharey=True), titles, draws, strict=True):
            axes.contour(*grid, density, levels=[0.01, 0.05, 0.15, 0.3], colors="gray", linewidths=0.7)
            axes.plot(d[:, 0], d[:, 1], ".", markersize=4)
            axes.set(xlabel="a", ylabel="b", title=title, xlim=(-3, 3), ylim=(-2, 8))

    return Outcome(numbers, draw)
