"""Stochastic volatility, 200 days."""

import arviz_base
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jax import lax
from numpyro.contrib.control_flow import scan
from numpyro.infer import SVI, Predictive, Trace_ELBO, log_likelihood
from numpyro.infer.autoguide import AutoMultivariateNormal

import vipl
from vipl import sample

LATENTS = ("level", "memory", "size", "z")


def data():
    rng = np.random.default_rng(4)
    h, y = 0.0, []
    for _ in range(200):
        h = 0.95 * h + 0.3 * rng.standard_normal()
        y.append(np.exp(0.5 * (-1.0 + h)) * rng.standard_normal())
    return {"y": jnp.asarray(y)}


def with_vipl(key, y):
    @vipl.gen
    def model():
        level = sample("level", dist.Normal(0.0, 2.0))
        memory = sample("memory", dist.Beta(20.0, 1.5))
        size = sample("size", dist.HalfNormal(0.5))

        def day(h, _):
            h = memory * h + size * sample("z", dist.Normal(0.0, 1.0))
            sample("y", dist.Normal(0.0, jnp.exp(0.5 * (level + h))))
            return h, None

        lax.scan(day, 0.0, None, length=len(y))

    posterior = vipl.infer(model(), {"y": y}, key=key)
    return posterior, posterior.to_arviz(key)


def model(y=None, n=200):
    level = numpyro.sample("level", dist.Normal(0.0, 2.0))
    memory = numpyro.sample("memory", dist.Beta(20.0, 1.5))
    size = numpyro.sample("size", dist.HalfNormal(0.5))

    def day(h, _):
        h = memory * h + size * numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(0.0, jnp.exp(0.5 * (level + h))))
        return h, None

    with numpyro.handlers.condition(data={} if y is None else {"y": y}):
        scan(day, 0.0, None, length=n)


def with_numpyro(key, num_steps, rate, y):
    guide = AutoMultivariateNormal(model)
    svi = SVI(model, guide, optax.adam(rate), Trace_ELBO())
    result = svi.run(key, num_steps, y, progress_bar=False)
    draws = guide.sample_posterior(key, result.params, sample_shape=(1000,))
    groups = {"posterior": draws, "posterior_predictive": Predictive(model, draws)(key)}
    groups["log_likelihood"] = log_likelihood(model, draws, y)
    groups["prior"] = Predictive(model, num_samples=1000)(key)
    tree = arviz_base.from_dict(jax.tree.map(lambda x: x[None], groups) | {"observed_data": {"y": y}})
    return guide, result.params, tree
