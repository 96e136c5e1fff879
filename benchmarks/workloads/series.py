"""A state-space model of T steps: x_t ~ Normal(a x_{t-1}, 1), y_t ~ Normal(x_t, 0.5); the guide is a scan, too."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import lax
from numpyro.contrib.control_flow import scan as numpyro_scan
from numpyro.infer import Trace_ELBO

import vipl
from benchmarks.measure import Case
from benchmarks.workloads import log_normal
from vipl import CoupledAlternative, Score, objectives, sample


@vipl.gen
def model(params, length):
    """The chain and its data."""

    def step(x, _):
        x = sample("x", dist.Normal(params["a"] * x, 1.0))
        sample("y", dist.Normal(x, 0.5))
        return x, None

    lax.scan(step, 0.0, None, length=length)


@vipl.gen
def guide(params):
    """A chain with its own numbers for each step."""

    def step(x, row):
        slope, shift, log_scale = row
        x = sample("x", dist.Normal(slope * x + shift, jnp.exp(log_scale)))
        return x, None

    lax.scan(step, 0.0, (params["slope"], params["shift"], params["log_scale"]))


@vipl.expectation
def elbo(params, y):
    """Per step."""
    return objectives.elbo(model(params, y.shape[0]), guide(params), {"y": y}) / y.shape[0]


def _by_hand(key, params, y, held):
    eps = jax.random.normal(key, y.shape)
    scale = jnp.exp(params["log_scale"])

    def step(x, row):
        slope, shift, scale, eps = row
        return (slope * x + shift + scale * eps,) * 2

    _, x = lax.scan(step, 0.0, (params["slope"], params["shift"], scale, eps))
    x = lax.stop_gradient(x) if held else x
    before = jnp.concatenate([jnp.zeros(1), x[:-1]])
    log_q = log_normal(x, params["slope"] * before + params["shift"], scale)
    return (log_normal(x, params["a"] * before, 1.0) + log_normal(y, x, 0.5) - log_q) / y.shape[0], log_q


def reparam_by_hand(key, params, y):
    return jnp.sum(_by_hand(key, params, y, held=False)[0])


def score_by_hand(key, params, y):
    """Each step's score multiplies the reward to go."""
    terms, log_q = _by_hand(key, params, y, held=True)
    before = jnp.cumsum(log_q)
    return jnp.sum(terms * jnp.exp(before - lax.stop_gradient(before)))


def numpyro_elbo(key, params, y):
    def numpyro_model():
        def step(x, y):
            x = numpyro.sample("x", dist.Normal(params["a"] * x, 1.0))
            numpyro.sample("y", dist.Normal(x, 0.5), obs=y)
            return x, None

        numpyro_scan(step, jnp.array(0.0), y)

    def numpyro_guide():
        def step(x, row):
            slope, shift, log_scale = row
            x = numpyro.sample("x", dist.Normal(slope * x + shift, jnp.exp(log_scale)))
            return x, None

        numpyro_scan(step, jnp.array(0.0), (params["slope"], params["shift"], params["log_scale"]))

    elbo: Any = Trace_ELBO()
    return -elbo.loss(key, {}, numpyro_model, numpyro_guide) / y.shape[0]


# --- a switching model: which of two means, as a chain of flips ------------------------------------------------------


@vipl.gen
def switching(params, length):
    """A chain of two states, each with its mean."""

    def step(s, _):
        s = sample("s", dist.Bernoulli(logits=params["stay"] * (2.0 * s - 1.0)))
        sample("y", dist.Normal(params["mean"][s], 1.0))
        return s, None

    lax.scan(step, jnp.array(0, jnp.int32), None, length=length)


@vipl.gen
def flips(params):
    """A guide of independent flips."""
    lax.scan(lambda _, logit: (None, sample("s", dist.Bernoulli(logits=logit))), None, params["logits"])


def switching_by(estimator):
    def program(params, y):
        return objectives.elbo(switching(params, y.shape[0]), flips(params), {"y": y}) / y.shape[0]

    return vipl.expectation(program).with_estimators({"s": estimator}).estimate


def switching_by_hand(key, params, y):
    """Score function."""
    logits = params["logits"]
    s = (jax.random.uniform(key, y.shape) < jax.nn.sigmoid(logits)).astype(jnp.int32)
    before = jnp.concatenate([jnp.zeros(1, jnp.int32), s[:-1]])
    log_bernoulli = lambda s, l: -jax.nn.softplus(jnp.where(s == 1, -l, l))  # noqa: E731, E741
    log_q = jnp.sum(log_bernoulli(s, logits))
    log_p = jnp.sum(log_bernoulli(s, params["stay"] * (2.0 * before - 1.0)))
    log_p = log_p + jnp.sum(log_normal(y, params["mean"][s], 1.0))
    return (log_p - log_q) / y.shape[0] * jnp.exp(log_q - lax.stop_gradient(log_q))


def cases(quick: bool) -> list[Case]:
    """T = 100, 1000, 10000."""
    out = []
    for length in (100,) if quick else (100, 1000, 10_000):
        keys = jax.random.split(jax.random.key(5), 3)
        y = 2.0 * jax.random.normal(keys[0], (length,))
        params = {
            "a": jnp.array(0.9),
            "slope": 0.2 * jnp.ones(length),
            "shift": 0.8 * y,
            "log_scale": -0.7 * jnp.ones(length),
        }
        reparam = {"vipl": elbo.estimate, "handwritten": reparam_by_hand, "numpyro": numpyro_elbo}
        score = {"vipl": elbo.with_estimators({"x": Score()}).estimate, "handwritten": score_by_hand}
        states = {
            "stay": jnp.array(1.5),
            "mean": jnp.array([-1.0, 1.0]),
            "logits": 0.5 * jax.random.normal(keys[1], y.shape),
        }
        few = 400 if length == 100 else 100
        out.append(Case("state-space model", f"Reparam, T = {length}", reparam, (params, y), samples=few))
        out.append(Case("state-space model", f"Score, T = {length}", score, (params, y), samples=few))
        if length <= 1000:
            objectives_ = {"vipl": switching_by(CoupledAlternative()), "handwritten": switching_by_hand}
            out.append(
                Case(
                    "switching model",
                    f"CoupledAlternative, T = {length}",
                    objectives_,
                    (states, y),
                    samples=few,
                    note="by hand: score function",
                )  # fmt: skip
            )
    return out
