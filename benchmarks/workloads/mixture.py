"""A Gaussian mixture with 10 components and 1000 points; every point's component has its own guide.

The guide is a table of logits, f[points, components]: the exact ELBO is a sum over points and components. Points are
lanes of one expectation; one line is a `vmap` of an expectation for each point.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

import vipl
from benchmarks.measure import Case
from vipl import Enumerate, LeaveOneOut, LocalEnumerate, MeasureValued, Score, objectives, sample

COMPONENTS, POINTS, SAMPLES = 10, 1000, 4


@vipl.gen
def model(params):
    """One point."""
    k = sample("k", dist.Categorical(logits=params["weights"]))
    sample("x", dist.Normal(params["loc"][k], jnp.exp(params["log_scale"][k])))


def program(params, logits, x):
    """The ELBO of one point; its estimator is chosen from outside."""
    guide = vipl.gen(lambda: sample("k", dist.Categorical(logits=logits)))
    return objectives.elbo(model(params), guide(), {"x": x})


def together(estimator: Any, num_samples: int = 1) -> Any:
    """One expectation over all points."""

    def mean(params, x):
        return jnp.mean(jax.vmap(lambda logits, x: program(params, logits, x))(params["logits"], x))

    objective = vipl.expectation(mean).with_estimators({"k": estimator})
    return lambda key, params, x: objective.estimate(key, params, x, num_samples=num_samples)


def apart(estimator: Any) -> Any:
    """An expectation for each point, without noise."""
    objective = vipl.expectation(program).with_estimators({"k": estimator})

    def total(key, params, x):
        point = lambda logits, x: objective.estimate(key, params, logits, x)  # noqa: E731
        return jnp.mean(jax.vmap(point)(params["logits"], x))

    return total


def log_joint(params, x):
    """f[points, components]."""
    log_p = jax.nn.log_softmax(params["weights"]) - 0.5 * jnp.log(2 * jnp.pi) - params["log_scale"]
    return log_p - 0.5 * ((x[:, None] - params["loc"]) / jnp.exp(params["log_scale"])) ** 2


def exact_by_hand(key, params, x):
    del key
    log_q = jax.nn.log_softmax(params["logits"])
    return jnp.mean(jnp.sum(jnp.exp(log_q) * (log_joint(params, x) - log_q), axis=1))


def local_by_hand(key, params, x):
    """A draw for each point, with its own derivative; and what the probabilities of all values change."""
    log_q = jax.nn.log_softmax(params["logits"])
    k = jax.random.categorical(key, log_q)
    scale = params["log_scale"][k]
    log_p = jax.nn.log_softmax(params["weights"])[k] - scale - 0.5 * jnp.log(2 * jnp.pi)
    drawn = log_p - 0.5 * ((x - params["loc"][k]) / jnp.exp(scale)) ** 2 - log_q[jnp.arange(POINTS), k]
    every = jax.lax.stop_gradient(log_joint(params, x) - log_q)
    q = jnp.exp(log_q)
    return jnp.mean(drawn + jnp.sum((q - jax.lax.stop_gradient(q)) * every, axis=1))


def score_by_hand(key, params, x):
    """Leave-one-out over `SAMPLES` draws of each point; what is drawn is looked up, not summed over."""
    log_q = jax.nn.log_softmax(params["logits"])
    k = jax.random.categorical(key, log_q, shape=(SAMPLES, POINTS))
    rows = jnp.arange(POINTS)
    lq = log_q[rows, k]
    weights = jax.nn.log_softmax(params["weights"])[k]
    scale = params["log_scale"][k]
    lp = weights - scale - 0.5 * jnp.log(2 * jnp.pi) - 0.5 * ((x - params["loc"][k]) / jnp.exp(scale)) ** 2
    f = lp - lq
    held = jax.lax.stop_gradient(f)
    baseline = (held.sum(0) - held) / (SAMPLES - 1)
    score = lq - jax.lax.stop_gradient(lq)
    return jnp.mean(f + (held - baseline) * score)


def cases(quick: bool) -> list[Case]:
    """Exact and sampled."""
    del quick
    keys = jax.random.split(jax.random.key(3), 4)
    x = 3.0 * jax.random.normal(keys[0], (POINTS,))
    params = {
        "weights": 0.3 * jax.random.normal(keys[1], (COMPONENTS,)),
        "loc": jnp.linspace(-4.0, 4.0, COMPONENTS),
        "log_scale": jnp.zeros(COMPONENTS),
        "logits": jax.random.normal(keys[2], (POINTS, COMPONENTS)),
    }
    args = (params, x)
    exact, local = {"handwritten": exact_by_hand}, {"handwritten": local_by_hand}
    return [
        Case("mixture, 10 components, 1000 points", name, objectives, args, samples=100)
        for name, objectives in {
            "Enumerate": {"vipl": together(Enumerate())} | exact,
            "Enumerate(all_possible=True)": {"vipl": together(Enumerate(all_possible=True))} | exact,
            "Enumerate, a vmap of estimate": {"vipl": apart(Enumerate())} | exact,
            "Enumerate(all_possible=True), a vmap of estimate": {"vipl": apart(Enumerate(all_possible=True))} | exact,
            "LocalEnumerate": {"vipl": together(LocalEnumerate())} | local,
            "Score, leave one out of 4": {
                "vipl": together(Score(LeaveOneOut()), SAMPLES),
                "handwritten": score_by_hand,
            },
            "MeasureValued": {"vipl": together(MeasureValued())} | local,
        }.items()
    ]
