"""A structured variational autoencoder: a network says what each datum tells, and a Kalman smoother joins it.

    z_0 ~ Normal(0, 1),   z_t ~ Normal(0.9 z_{t-1}, √0.1),   y_t ~ p(y_t | z_t),   t = 0 ... 19,
    q(z | y) ∝ p(z) Π_t Normal(r_t; z_t, s_t),   (r_t, s_t) = encoder(y_t).

q is the posterior of a linear-Gaussian chain that has seen r in place of y. With y_t ~ Normal(z_t, √0.2) it is that of
the model at r = y and s² = 0.2, and the bound is then the log evidence, without variance: the log density of y under a
Normal with covariance 0.9^|i-j| v_min(i,j) + 0.2 (i = j), v_0 = 1, v_t = 0.81 v_{t-1} + 0.1. For y_t = sin(0.5 t) it is
-15.930466, and -11.078895 where y_8 to y_12 are missing, which the encoder that was learned from all data is told.

With y_t ~ Poisson(exp(z_t)) q is a Gaussian near the posterior. The log evidence of the counts is computed forwards in
t, on a grid of values of z. The bound is below it by the divergence of q, which is 0.1: the tolerance allows for that.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
from flax import nnx

import vipl
from vipl.inference import Kalman
from vipl.interop.flax import functional
from vipl.zoo import Number, Outcome

PAPER = "Johnson, Duvenaud, Wiltschko, Datta and Adams (2016), Composing graphical models with neural networks"
OBJECTIVE = "the evidence lower bound, with a path gradient"

T = 20
SERIES = jnp.sin(0.5 * jnp.arange(T))
COUNTS = jnp.array([1, 2, 4, 3, 5, 2, 1, 0, 0, 1, 0, 2, 3, 4, 6, 3, 2, 1, 0, 1])
ALL = jnp.ones(T, bool)
HOLES = ALL.at[8:13].set(False)
SCALES = jnp.full(T, 0.1**0.5).at[0].set(1.0)


def chain(observe):
    """The chain of z; `observe(z, seen)` is what is seen in a step, `seen` being that step's row of an argument."""

    def program(rows):
        def step(z, row):
            scale, seen = row
            z = vipl.sample("z", dist.Normal(0.9 * z, scale))
            observe(z, seen)
            return z, None

        jax.lax.scan(step, 0.0, (SCALES, rows))

    return vipl.gen(program)


gaussian = chain(lambda z, known: vipl.sample("y", dist.Normal(z, 0.2**0.5).mask(known)))
poisson = chain(lambda z, known: vipl.sample("y", dist.Poisson(jnp.exp(z)).mask(known)))
told = chain(lambda z, seen: vipl.sample("r", dist.Normal(z, seen["s"]).mask(seen["known"])))

LINEAR, linear = functional(nnx.Linear(1, 2, rngs=nnx.Rngs(0)))
LAYERS = [nnx.Linear(1, 16, rngs=nnx.Rngs(0)), nnx.gelu, nnx.Linear(16, 2, rngs=nnx.Rngs(1))]
DEEP, deep = functional(nnx.Sequential(*LAYERS))


def guide(encoder, params, y, known):
    """The posterior of the chain at what the encoder makes of each datum."""
    r, log_s = jax.vmap(lambda y: encoder(params)(y[None]))(y.astype(float)).T
    return vipl.normalize(told({"s": jnp.exp(log_s), "known": known}), {"r": r}, Kalman())


def bound(model, encoder):
    """An objective of the encoder's parameters, and of the data and which of them are known."""

    def of(params, data):
        y, known = data
        return vipl.objectives.sticking_the_landing(model(known), guide(encoder, params, y, known), {"y": y})

    return vipl.expectation(of)


def exact_gaussian(known) -> float:
    """The log density of the known data."""
    i = np.flatnonzero(known)
    v = [1.0]
    for _ in range(T - 1):
        v.append(0.81 * v[-1] + 0.1)
    cov = 0.9 ** np.abs(i[:, None] - i) * np.array(v)[np.minimum(i[:, None], i)] + 0.2 * np.eye(len(i))
    y = np.asarray(SERIES, "float64")[i]
    return float(-(len(i) * np.log(2 * np.pi) + np.linalg.slogdet(cov)[1] + y @ np.linalg.solve(cov, y)) / 2)


def exact_poisson() -> float:
    """The log evidence of the counts, z on a grid."""
    z = np.linspace(-5.0, 5.0, 1001)
    width, log_z = z[1] - z[0], 0.0
    before = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    move = np.exp(-((z[:, None] - 0.9 * z) ** 2) / 0.2) / np.sqrt(0.2 * np.pi)
    for y in np.asarray(COUNTS):
        now = before * np.exp(y * z - np.exp(z)) / math.factorial(y)
        log_z += np.log(np.sum(now) * width)
        before = move @ now / np.sum(now)
    return float(log_z)


def run(progress: bool = True) -> Outcome:
    """Fits a linear encoder to the series, and one with a hidden layer to the counts."""
    key, fits = jax.random.key(0), {}
    for name, model, encoder, start, y in (
        ("series", gaussian, linear, LINEAR, SERIES),
        ("counts", poisson, deep, DEEP, COUNTS),
    ):
        adam = optax.adam(optax.cosine_decay_schedule(0.05, 300))
        options = {"num_steps": 300, "num_samples": 4, "progress": progress}
        fits[name] = vipl.fit(bound(model, encoder), start, adam, key=key, data=(y, ALL), **options)
    keys = jax.random.split(jax.random.key(1), 500)
    of_series = jax.jit(jax.vmap(bound(gaussian, linear).estimate, (0, None, None)))
    whole, holes = (of_series(keys, fits["series"].params, (SERIES, known)) for known in (ALL, HOLES))
    numbers = [
        Number("bound of the series, nats", float(whole.mean()), exact_gaussian(ALL), 2e-3),
        Number("its standard deviation", float(whole.std()), 0.0, 0.02),
        Number("bound with 8 to 12 missing, nats", float(holes.mean()), exact_gaussian(HOLES), 2e-3),
        Number("bound of the counts, nats", float(fits["counts"].values[-50:].mean()), exact_poisson(), 0.2),
    ]

    def draw(figure):
        left, right = figure.subplots(1, 2)
        for axes, name, encoder, y, known in (
            (left, "series", linear, SERIES, HOLES),
            (right, "counts", deep, COUNTS, ALL),
        ):
            z = guide(encoder, fits[name].params, y, known).marginals("z")
            sd = jnp.sqrt(z.variance)
            axes.fill_between(range(T), z.mean - 2 * sd, z.mean + 2 * sd, alpha=0.3, label="z, ± 2 sd")
            axes.plot(range(T), z.mean, label="mean of z")
            axes.plot(np.flatnonzero(known), y[known], "k.", label="data")
            axes.set(xlabel="t", ylabel="z, y", title=f"Posterior of the {name}")
            axes.legend()

    return Outcome(numbers, draw)
