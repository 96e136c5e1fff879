"""Varying intercepts of 40 groups, and two predictors in raw units."""

from typing import Any

import arviz_base
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.infer import SVI, Predictive, Trace_ELBO, log_likelihood
from numpyro.infer.autoguide import AutoMultivariateNormal

import vipl
from vipl import sample

LATENTS = ("level", "spread", "effect", "w", "noise")
COORDINATES = {"dense_mass": True}


def data():
    rng = np.random.default_rng(1)
    group = rng.integers(0, 40, 1600)
    x = rng.standard_normal((1600, 2)) * [1.0, 20.0] + [0.0, 50.0]
    y = 3.0 + 1.2 * rng.standard_normal(40)[group] + (x - x.mean(0)) @ [0.8, -0.03] + rng.standard_normal(1600)
    return {"x": jnp.asarray(x - x.mean(0)), "group": jnp.asarray(group), "y": jnp.asarray(y)}


def with_vipl(key, x, group, y):
    @vipl.gen
    def model(x, group):
        level = sample("level", dist.Normal(0.0, 10.0))
        spread = sample("spread", dist.HalfNormal(5.0))
        effect = sample("effect", dist.Normal(level, spread).expand([40]))
        w = sample("w", dist.Normal(jnp.zeros(2), 10.0))
        sample("y", dist.Normal(effect[group] + x @ w, sample("noise", dist.HalfNormal(5.0))))

    posterior = vipl.infer(model(x, group), {"y": y}, key=key)
    return posterior, posterior.to_arviz(key)


def model(x, group, y=None):
    level = numpyro.sample("level", dist.Normal(0.0, 10.0))
    spread = numpyro.sample("spread", dist.HalfNormal(5.0))
    with numpyro.plate("groups", 40):
        effect: Any = numpyro.sample("effect", dist.Normal(level, spread))
    w = numpyro.sample("w", dist.Normal(jnp.zeros(2), 10.0).to_event(1))
    noise = numpyro.sample("noise", dist.HalfNormal(5.0))
    with numpyro.plate("rows", len(group)):
        numpyro.sample("y", dist.Normal(effect[group] + x @ w, noise), obs=y)


def with_numpyro(key, num_steps, rate, x, group, y):
    guide = AutoMultivariateNormal(model)
    svi = SVI(model, guide, optax.adam(rate), Trace_ELBO())
    result = svi.run(key, num_steps, x, group, y, progress_bar=False)
    draws = guide.sample_posterior(key, result.params, sample_shape=(1000,))
    groups = {"posterior": draws, "posterior_predictive": Predictive(model, draws)(key, x, group)}
    groups["log_likelihood"] = log_likelihood(model, draws, x, group, y)
    groups["prior"] = Predictive(model, num_samples=1000)(key, x, group)
    tree = arviz_base.from_dict(jax.tree.map(lambda x: x[None], groups) | {"observed_data": {"y": y}})
    return guide, result.params, tree
