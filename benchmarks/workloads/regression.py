"""Bayesian logistic regression (10000 x 20, minibatches of 256), eight schools, and a hierarchy of 100 groups."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.infer import Trace_ELBO

import vipl
from benchmarks.measure import Case
from benchmarks.workloads import log_normal
from vipl import objectives, sample

ROWS, COLUMNS, BATCH = 10_000, 20, 256


# --- logistic regression; the guide is mean-field, or has full rank ---------------------------------------------------


@vipl.gen
def weights():
    """The prior."""
    return sample("w", dist.Normal(jnp.zeros(COLUMNS), 1.0).to_event(1))


@vipl.gen
def labels(w, x):
    """The labels of a minibatch."""
    sample("y", dist.Bernoulli(logits=x @ w).to_event(1))


def log_joint(w, rows, x, y):
    """log p(w) + (all rows / batch) log p(y | x, w)."""
    likelihood = labels(w, x[rows]).assess({"y": y[rows]}).log_prob
    return weights().assess({"w": w}).log_prob + ROWS / BATCH * likelihood


@vipl.expectation
def mean_field(params, x, y):
    rows = sample("rows", dist.DiscreteUniform(0, ROWS - 1).expand([BATCH]), vipl.Score())
    guide = vipl.gen(lambda: sample("w", dist.Normal(params["loc"], jnp.exp(params["log_scale"])).to_event(1)))
    q = guide().simulate()
    return log_joint(q.choices["w"], rows, x, y) - q.log_prob


@vipl.expectation
def full_rank(params, x, y):
    rows = sample("rows", dist.DiscreteUniform(0, ROWS - 1).expand([BATCH]), vipl.Score())
    guide = vipl.gen(lambda: sample("w", dist.MultivariateNormal(params["loc"], scale_tril=lower(params))))
    q = guide().simulate()
    return log_joint(q.choices["w"], rows, x, y) - q.log_prob


def lower(params):
    """A lower triangular matrix with positive diagonal."""
    return jnp.tril(params["lower"], -1) + jnp.diag(jnp.exp(jnp.diag(params["lower"])))


def log_joint_by_hand(w, rows, x, y):
    logits = x[rows] @ w
    return jnp.sum(log_normal(w, 0.0, 1.0)) + ROWS / BATCH * jnp.sum(y[rows] * logits - jax.nn.softplus(logits))


def mean_field_by_hand(key, params, x, y):
    rows_key, key = jax.random.split(key)
    rows = jax.random.randint(rows_key, (BATCH,), 0, ROWS)
    eps = jax.random.normal(key, (COLUMNS,))
    w = params["loc"] + jnp.exp(params["log_scale"]) * eps
    log_q = jnp.sum(-0.5 * eps**2 - params["log_scale"] - 0.5 * jnp.log(2 * jnp.pi))
    return log_joint_by_hand(w, rows, x, y) - log_q


def full_rank_by_hand(key, params, x, y):
    rows_key, key = jax.random.split(key)
    rows = jax.random.randint(rows_key, (BATCH,), 0, ROWS)
    eps = jax.random.normal(key, (COLUMNS,))
    w = params["loc"] + lower(params) @ eps
    log_q = jnp.sum(-0.5 * eps**2 - jnp.diag(params["lower"]) - 0.5 * jnp.log(2 * jnp.pi))
    return log_joint_by_hand(w, rows, x, y) - log_q


def numpyro_regression(full):
    def loss(key, params, x, y):
        rows_key, key = jax.random.split(key)
        rows = jax.random.randint(rows_key, (BATCH,), 0, ROWS)

        def numpyro_model():
            w = numpyro.sample("w", dist.Normal(jnp.zeros(COLUMNS), 1.0).to_event(1))
            with numpyro.plate("rows", ROWS, BATCH):
                numpyro.sample("y", dist.Bernoulli(logits=x[rows] @ w), obs=y[rows])

        def numpyro_guide():
            if full:
                numpyro.sample("w", dist.MultivariateNormal(params["loc"], scale_tril=lower(params)))
            else:
                numpyro.sample("w", dist.Normal(params["loc"], jnp.exp(params["log_scale"])).to_event(1))

        elbo: Any = Trace_ELBO()
        return -elbo.loss(key, {}, numpyro_model, numpyro_guide)

    return loss


# --- groups: eight schools, non-centred; and 100 groups ---------------------------------------------------------------


@vipl.gen
def groups(scales):
    """y_j ~ Normal(mu + tau z_j, scale_j)."""
    mu = sample("mu", dist.Normal(0.0, 5.0))
    tau = sample("tau", dist.LogNormal(0.0, 1.0))
    z = sample("z", dist.Normal(jnp.zeros(scales.shape), 1.0).to_event(1))
    sample("y", dist.Normal(mu + tau * z, scales).to_event(1))


@vipl.gen
def group_guide(params):
    """Mean-field."""
    sample("mu", dist.Normal(params["mu"][0], jnp.exp(params["mu"][1])))
    sample("tau", dist.LogNormal(params["tau"][0], jnp.exp(params["tau"][1])))
    sample("z", dist.Normal(params["z"][0], jnp.exp(params["z"][1])).to_event(1))


@vipl.expectation
def group_elbo(params, scales, y):
    return objectives.elbo(groups(scales), group_guide(params), {"y": y})


def groups_by_hand(key, params, scales, y):
    mu_key, tau_key, z_key = jax.random.split(key, 3)
    eps = jax.random.normal(mu_key), jax.random.normal(tau_key), jax.random.normal(z_key, scales.shape)
    mu, log_tau, z = (params[n][0] + jnp.exp(params[n][1]) * e for n, e in zip(("mu", "tau", "z"), eps, strict=True))
    log_q = sum(
        jnp.sum(-0.5 * e**2 - params[n][1] - 0.5 * jnp.log(2 * jnp.pi))
        for n, e in zip(("mu", "tau", "z"), eps, strict=True)
    )
    # the log-normal densities of tau: both have -log tau
    log_p = log_normal(mu, 0.0, 5.0) + log_normal(log_tau, 0.0, 1.0) + jnp.sum(log_normal(z, 0.0, 1.0))
    log_p = log_p + jnp.sum(log_normal(y, mu + jnp.exp(log_tau) * z, scales))
    return log_p - log_q


def numpyro_groups(key, params, scales, y):
    def numpyro_model():
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = numpyro.sample("tau", dist.LogNormal(0.0, 1.0))
        z = numpyro.sample("z", dist.Normal(jnp.zeros(scales.shape), 1.0).to_event(1))
        numpyro.sample("y", dist.Normal(mu + tau * z, scales).to_event(1), obs=y)

    def numpyro_guide():
        numpyro.sample("mu", dist.Normal(params["mu"][0], jnp.exp(params["mu"][1])))
        numpyro.sample("tau", dist.LogNormal(params["tau"][0], jnp.exp(params["tau"][1])))
        numpyro.sample("z", dist.Normal(params["z"][0], jnp.exp(params["z"][1])).to_event(1))

    elbo: Any = Trace_ELBO()
    return -elbo.loss(key, {}, numpyro_model, numpyro_guide)


def group_case(name, scales, y):
    params = {"mu": jnp.array([1.0, 0.0]), "tau": jnp.array([0.3, -1.0]), "z": jnp.zeros((2, y.size))}
    implementations = {"vipl": group_elbo.estimate, "handwritten": groups_by_hand, "numpyro": numpyro_groups}
    return Case("hierarchical", name, implementations, (params, scales, y), samples=2000)


def cases(quick: bool) -> list[Case]:
    """Two guides of a regression, two hierarchies."""
    del quick
    keys = jax.random.split(jax.random.key(8), 4)
    x = jax.random.normal(keys[0], (ROWS, COLUMNS))
    w = jax.random.normal(keys[1], (COLUMNS,))
    y = (jax.random.uniform(keys[2], (ROWS,)) < jax.nn.sigmoid(x @ w)).astype(jnp.int32)
    diagonal = {"loc": 0.5 * w, "log_scale": -2.0 * jnp.ones(COLUMNS)}
    full = {"loc": 0.5 * w, "lower": -2.0 * jnp.eye(COLUMNS) + 0.01}
    schools = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    effects = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    return [
        Case(
            "logistic regression", "mean-field",
            {"vipl": mean_field.estimate, "handwritten": mean_field_by_hand, "numpyro": numpyro_regression(False)},
            (diagonal, x, y),
        ),
        Case(
            "logistic regression", "full rank",
            {"vipl": full_rank.estimate, "handwritten": full_rank_by_hand, "numpyro": numpyro_regression(True)},
            (full, x, y),
        ),
        group_case("eight schools", schools, effects),
        group_case("100 groups", jnp.ones(100), jax.random.normal(keys[3], (100,)) * 1.5 + 1.0),
    ]  # fmt: skip
