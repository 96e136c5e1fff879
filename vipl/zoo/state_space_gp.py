"""State-space Gaussian process with conjugate-computation natural gradients.

    f ~ GP(0, k),   k(r) = (1 + √3 r) exp(-√3 r)   (Matern-3/2),   t_i = i / 2,   i = 0, ..., 19,
    y_i | f ~ Normal(f(t_i), √0.1)   or   Poisson(exp f(t_i)).

(f, f') is a linear-Gaussian chain, so that `Kalman` gives evidence and posterior marginals in O(T). For counts the
guide is the posterior of the same chain with a pseudo-observation of precision Λ_i and value h_i / Λ_i for each count.
With Z the evidence of the pseudo-observations, m and v the marginals of the guide, and
    g_i(m, v) = E_{f ~ N(m, v)}[log Poisson(y_i | exp f) - log Normal(h_i / Λ_i | f, Λ_i^-½)],
the evidence lower bound is log Z + Σ g_i; a natural gradient step of it is
    h ← h + ρ (∇_m g - 2 m ∇_v g),   Λ ← Λ - 2 ρ ∇_v g.

Plain reparametrization, beside it, is Adam on a full-rank Gaussian guide of e, where f = L e, L Lᵀ = k and e ~ N(0, I).

References: the evidence of y_i = sin t_i is that of a Normal with the covariance matrix k + 0.1 I, by linear algebra
(below). The best bound for the counts, -35.253558, is the fixed point of the update above with dense matrices and
ℓ_i = y_i m - exp(m + v / 2) - log y_i!, iterated here in NumPy's double precision.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax

import vipl
from vipl.inference import Kalman
from vipl.zoo import Number, Outcome

PAPER = "Khan and Lin (2017), Conjugate-computation variational inference, algorithm 1; Chang et al. (2020), eq. (11)"
OBJECTIVE = "the evidence lower bound, by natural gradients and by plain reparametrization"

TIMES, ROOT, DRAWS = 0.5 * np.arange(20), math.sqrt(3.0), 10_000
COUNTS = np.array([1, 2, 4, 3, 5, 2, 1, 0, 0, 1, 0, 2, 3, 4, 6, 3, 2, 1, 0, 1])
DISTANCE = ROOT * np.abs(TIMES[:, None] - TIMES)
PRIOR = (1 + DISTANCE) * np.exp(-DISTANCE)
STATIONARY = np.diag([1.0, 3.0])
TRANSITION = math.exp(-0.5 * ROOT) * np.array([[1 + 0.5 * ROOT, 0.5], [-0.5 * 3.0, 1 - 0.5 * ROOT]])
NOISES = np.array([STATIONARY] + 19 * [STATIONARY - TRANSITION @ STATIONARY @ TRANSITION.T], np.float32)


@vipl.gen
def process(scales):
    """The chain (f, f') in time, and an observation of f in each step."""

    def step(state, inputs):
        noise, scale = inputs
        state = vipl.sample("state", dist.MultivariateNormal(jnp.float32(TRANSITION) @ state, noise))
        vipl.sample("y", dist.Normal(state[0], scale))
        return state, None

    jax.lax.scan(step, jnp.zeros(2), (NOISES, scales))


@vipl.expectation
def gain(mean, variance, pseudo, scales):
    """Σ_i g_i(m_i, v_i)."""
    f = jax.vmap(lambda m, v: vipl.sample("f", dist.Normal(m, jnp.sqrt(v))))(mean, variance)
    return jnp.sum(dist.Poisson(jnp.exp(f)).log_prob(COUNTS) - dist.Normal(f, scales).log_prob(pseudo))


def natural_step(sites, inputs):
    """One step of conjugate-computation variational inference, at the rate ρ; the bound and m before it."""
    (shift, precision), (key, rate) = sites, inputs
    program, pseudo, scales = process(precision**-0.5), shift / precision, precision**-0.5
    log_z = vipl.marginal(program, "y", Kalman()).assess({"y": pseudo}).log_prob
    marginals = vipl.normalize(program, {"y": pseudo}, Kalman()).marginals("state")
    mean, variance = marginals.mean[:, 0], marginals.variance[:, 0]
    at = (key, mean, variance, pseudo, scales)
    value, (of_mean, of_variance) = gain.value_and_grad(*at, num_samples=DRAWS, argnums=(1, 2))
    shift = shift + rate * (of_mean - 2 * mean * of_variance)
    return (shift, jnp.maximum(precision - 2 * rate * of_variance, 0.01)), (log_z + value, mean)


def exact():
    """Evidence of sin t, and the best bound of the counts, with dense matrices in double precision."""
    noisy, y = PRIOR + 0.1 * np.eye(20), np.sin(TIMES)
    evidence = -0.5 * (y @ np.linalg.solve(noisy, y) + np.linalg.slogdet(2 * np.pi * noisy)[1])
    mean, cov, inverse = np.zeros(20), np.eye(20), np.linalg.inv(PRIOR)
    shift, precision = np.zeros(20), np.ones(20)
    for _ in range(200):
        cov = np.linalg.inv(inverse + np.diag(precision))
        mean = cov @ shift
        rate = np.exp(mean + 0.5 * np.diag(cov))
        shift, precision = 0.5 * (shift + COUNTS - rate + mean * rate), 0.5 * (precision + rate)
    likelihood = (COUNTS * mean - np.exp(mean + 0.5 * np.diag(cov)) - [math.lgamma(y + 1) for y in COUNTS]).sum()
    divergence = np.trace(inverse @ cov) + mean @ inverse @ mean - 20 - np.linalg.slogdet(inverse @ cov)[1]
    return evidence, likelihood - 0.5 * divergence, mean, np.sqrt(np.diag(cov))


@vipl.gen
def dense():
    """The same model of counts without the chain."""
    e = vipl.sample("e", dist.Normal(jnp.zeros(20), 1.0).to_event(1))
    vipl.sample("y", dist.Poisson(jnp.exp(jnp.float32(np.linalg.cholesky(PRIOR)) @ e)).to_event(1))


def run(progress: bool = True) -> Outcome:
    """30 natural steps, 500 of Adam; tolerances: 5 standard errors (sd of a draw 0.37); 0.05 for Adam."""
    key = jax.random.key(0)
    evidence, best, mean, sd = exact()
    seen = vipl.marginal(process(jnp.full(20, math.sqrt(0.1))), "y", Kalman())
    numbers = [Number("log evidence of sin t", float(seen.assess({"y": jnp.sin(TIMES)}).log_prob), evidence, 1e-3)]

    inputs = (jax.random.split(key, 30), 0.6 / (1 + jnp.arange(30) / 5))
    path, means = jax.jit(lambda: jax.lax.scan(natural_step, (jnp.zeros(20), jnp.ones(20)), inputs))()[1]
    numbers.append(Number("bound of the counts, natural gradients", float(path[-1]), best, 0.02))
    full = vipl.guides.FullRank(dense(), {"y": COUNTS})
    elbo = vipl.expectation(lambda params: vipl.objectives.elbo(dense(), full(params), {"y": COUNTS}))
    adam = optax.adam(optax.cosine_decay_schedule(0.03, 500))
    plain = vipl.fit(elbo, full.init(key, scale=1.0), adam, key=key, num_steps=500, num_samples=50, progress=progress)
    reached = float(elbo.estimate(key, plain.params, num_samples=50_000))
    numbers.append(Number("bound of the counts, Adam", reached, best, 0.05))

    def draw(figure):
        left, right = figure.subplots(1, 2)
        left.plot(TIMES, COUNTS, "ko", label="counts")
        left.plot(TIMES, np.exp(means[-1]), label="natural gradients")
        left.plot(TIMES, np.exp(mean), "k:", label="dense matrices")
        left.fill_between(TIMES, np.exp(mean - 2 * sd), np.exp(mean + 2 * sd), alpha=0.2, label="2 sd")
        left.set(xlabel="time t", ylabel="median rate exp f(t)", title="Posterior of the rate")
        right.plot(np.arange(30), path, label="natural gradients")
        right.plot(plain.values, lw=0.7, label="Adam, 50 draws a step")
        right.axhline(best, color="k", ls=":", label="best")
        right.set(xlabel="step", ylabel="nats", xscale="symlog", title="Lower bound")
        right.set(xlim=(0, 500), ylim=(best - 8, best + 3))
        for axes in (left, right):
            axes.legend()

    return Outcome(numbers, draw)
