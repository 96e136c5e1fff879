"""Alternatives in chains, enumeration in lanes and in a layer, and elements of one site."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import lax

import vipl
from benchmarks.data import binary_images
from benchmarks.measure import Case
from benchmarks.workloads.vae import dense
from vipl import Enumerate, LocalEnumerate, MeasureValued, Score, objectives, sample

UNITS = 8


# --- a chain of n sites, written out: the sine of the last ------------------------------------------------------------


def chain(n: int, estimator: Any) -> Callable:
    """Of Gaussians for `MeasureValued`, of flips otherwise."""

    @vipl.expectation
    def last(theta):
        x = jnp.zeros(())
        for i in range(n):
            mean = 0.5 * x + theta
            d = dist.Normal(mean, 1.0) if isinstance(estimator, MeasureValued) else dist.Bernoulli(logits=mean)
            x = 1.0 * sample(f"x{i}", d, estimator)
        return jnp.sin(x)

    return last.estimate


def _last(theta, draws, site, value):
    """The last of a chain, and all; the one at `site` has another value."""
    x, chain = jnp.zeros(()), []
    for i, draw in enumerate(draws):
        x = jnp.where(site == i, value, draw(0.5 * x + theta))
        chain.append(x)
    return jnp.sin(x), chain


def gaussians_by_hand(n: int) -> Callable:
    """Each mean's two alternatives, all in one `vmap`."""

    def estimate(key, theta):
        keys = jax.random.split(key)
        noise = jax.random.normal(keys[0], (n,))
        distance = jnp.sqrt(-2.0 * jnp.log1p(-jax.random.uniform(keys[1], (n,))))
        held, draws = lax.stop_gradient(theta), [lambda mean, i=i: mean + noise[i] for i in range(n)]
        f, xs = _last(held, draws, -1, 0.0)
        means = 0.5 * jnp.stack([jnp.zeros(()), *xs[:-1]]) + theta
        others = lax.stop_gradient(means)[:, None] + jnp.array([1.0, -1.0]) * distance[:, None]
        sites = jnp.repeat(jnp.arange(n), 2)
        results = jax.vmap(lambda i, value: _last(held, draws, i, value)[0])(sites, others.reshape(-1)).reshape(n, 2)
        slope = (results[:, 0] - results[:, 1]) / jnp.sqrt(2.0 * jnp.pi)
        # The chain before a site carries no derivative: each mean's is that in theta, through the values drawn.
        return f + jnp.sum(lax.stop_gradient(slope) * (means - lax.stop_gradient(means)))

    return estimate


def flips_by_hand(n: int) -> Callable:
    """Every flip the other way, all in one `vmap`."""

    def estimate(key, theta):
        u = jax.random.uniform(key, (n,))
        draws = [lambda logit, i=i: (u[i] < jax.nn.sigmoid(logit)).astype(u.dtype) for i in range(n)]
        held = lax.stop_gradient(theta)
        f, xs = _last(held, draws, -1, 0.0)
        x = jnp.stack(xs)
        p = jax.nn.sigmoid(0.5 * jnp.stack([jnp.zeros(()), *xs[:-1]]) + theta)
        to_other = jnp.where(x > 0, 1.0 - p, p)
        results = jax.vmap(lambda i, value: _last(held, draws, i, value)[0])(jnp.arange(n), 1.0 - x)
        return f + jnp.sum(lax.stop_gradient(results - f) * (to_other - lax.stop_gradient(to_other)))

    return estimate


# --- flips that are added up ------------------------------------------------------------------------------------------


def added_up(estimator: Any) -> Callable:
    """The squares of n flips' distances from numbers, added up; the flips are one site."""

    @vipl.expectation
    def total(logits, numbers):
        flips = sample("b", dist.Bernoulli(logits=logits).to_event(1), estimator)
        return jnp.sum((flips - numbers) ** 2)

    return total.estimate


def added_up_exactly(key, logits, numbers):
    del key
    p = jax.nn.sigmoid(logits)
    return jnp.sum(p * (1.0 - numbers) ** 2 + (1.0 - p) * numbers**2)


def added_up_by_scores(key, logits, numbers):
    """Each flip's score multiplies its own term."""
    flips = (jax.random.uniform(key, logits.shape) < jax.nn.sigmoid(logits)).astype(logits.dtype)
    terms, log_q = (flips - numbers) ** 2, flips * logits - jax.nn.softplus(logits)
    return jnp.sum(terms * (1.0 + log_q - lax.stop_gradient(log_q)))


# --- a belief network whose layer is summed over ----------------------------------------------------------------------


@vipl.gen
def model(params):
    """One image."""
    h = sample("h", dist.Bernoulli(logits=params["top"]).to_event(1))
    sample("x", dist.Bernoulli(logits=dense(params["down"], h)).to_event(1))


@vipl.gen
def guide(params, x):
    """Its hidden layer."""
    sample("h", dist.Bernoulli(logits=dense(params["up"], x)).to_event(1))


def network(estimator: Any) -> Callable:
    """The mean bound of the images."""

    @vipl.expectation
    def elbo(params, x):
        return jnp.mean(jax.vmap(lambda x: objectives.elbo(model(params), guide(params, x), {"x": x}))(x))

    return elbo.with_estimators({"h": estimator}).estimate


def network_by_hand(key, params, x):
    """Sums over all layers as products of matrices."""
    del key
    layers = jnp.asarray(np.indices((2,) * UNITS).reshape(UNITS, -1).T, x.dtype)  # [2**units, units]
    logits, top, up = dense(params["down"], layers), params["top"], dense(params["up"], x)
    log_p = x @ logits.T - jnp.sum(jax.nn.softplus(logits), -1) + layers @ top - jnp.sum(jax.nn.softplus(top))
    log_q = up @ layers.T - jnp.sum(jax.nn.softplus(up), -1, keepdims=True)
    return jnp.mean(jnp.sum(jnp.exp(log_q) * (log_p - log_q), -1))


def cases(quick: bool) -> list[Case]:
    """Chains of 8, 32 and 128 sites; 100,000 flips; a layer of eight units; 1,000 elements of a site."""
    theta, out = (jnp.array(0.3),), []
    for n in (8,) if quick else (8, 32, 128):
        gaussians = {"vipl": chain(n, MeasureValued()), "handwritten": gaussians_by_hand(n)}
        flips = {"vipl": chain(n, LocalEnumerate()), "handwritten": flips_by_hand(n)}
        out += [
            Case("chain, written out", f"MeasureValued, n = {n}", gaussians, theta),
            Case("chain, written out", f"LocalEnumerate, n = {n}", flips, theta),
        ]
    keys = jax.random.split(jax.random.key(8), 5)
    for n, name, estimator, by_hand in (
        (100_000, "Enumerate", Enumerate(), added_up_exactly),
        (100_000, "Enumerate(all_possible=True)", Enumerate(all_possible=True), added_up_exactly),
        (1000, "Score", Score(), added_up_by_scores),
    ):
        args = tuple(jax.random.normal(k, (n,)) for k in keys[:2])
        lines = {"vipl": added_up(estimator), "handwritten": by_hand}
        out.append(Case(f"{n:,} flips of one site, added up", name, lines, args, samples=100))
    x, name = binary_images(64)
    pixels = x.shape[1]
    params = {
        "top": jnp.zeros(UNITS),
        "down": (jax.random.normal(keys[2], (UNITS, pixels)) / np.sqrt(UNITS), jnp.zeros(pixels)),
        "up": (jax.random.normal(keys[3], (pixels, UNITS)) / np.sqrt(pixels), jnp.zeros(UNITS)),
    }
    for line, estimator in (("Enumerate", Enumerate()), ("Enumerate(all_possible=True)", Enumerate(all_possible=True))):
        lines = {"vipl": network(estimator), "handwritten": network_by_hand}
        args = (params, jnp.asarray(x))
        out.append(Case(f"belief network on {name}, a layer of {UNITS} summed over", line, lines, args, samples=5))
    return out
