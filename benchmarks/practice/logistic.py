"""Logistic regression on ten columns of the breast-cancer data, in raw units."""

from typing import Any

import arviz_base
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.infer import SVI, Predictive, Trace_ELBO, log_likelihood
from numpyro.infer.autoguide import AutoMultivariateNormal
from numpyro.infer.initialization import init_to_mean

import vipl
from vipl import sample

LATENTS = ("a", "w")
COORDINATES = {"dense_mass": True, "init_strategy": init_to_mean}


def data():
    from sklearn.datasets import load_breast_cancer

    bunch: Any = load_breast_cancer()
    x = bunch.data[:, [1, 4, 8, 9, 11, 14, 16, 18, 19]]
    return {"x": jnp.asarray(x - x.mean(0)), "y": jnp.asarray(bunch.target)}


def with_vipl(key, x, y):
    @vipl.gen
    def model(x):
        a = sample("a", dist.Normal(0.0, 3.0))
        w = sample("w", dist.Normal(jnp.zeros(x.shape[1]), 2.0 / x.std(0)))
        sample("y", dist.Bernoulli(logits=a + x @ w))

    posterior = vipl.infer(model(x), {"y": y}, key=key)
    return posterior, posterior.to_arviz(key)


def model(x, y=None):
    a = numpyro.sample("a", dist.Normal(0.0, 3.0))
    w = numpyro.sample("w", dist.Normal(jnp.zeros(x.shape[1]), 2.0 / x.std(0)).to_event(1))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("y", dist.Bernoulli(logits=a + x @ w), obs=y)


def with_numpyro(key, num_steps, rate, x, y):
    guide = AutoMultivariateNormal(model)
    svi = SVI(model, guide, optax.adam(rate), Trace_ELBO())
    result = svi.run(key, num_steps, x, y, progress_bar=False)
    draws = guide.sample_posterior(key, result.params, sample_shape=(1000,))
    groups = {"posterior": draws, "posterior_predictive": Predictive(model, draws)(key, x)}
    groups["log_likelihood"] = log_likelihood(model, draws, x, y)
    groups["prior"] = Predictive(model, num_samples=1000)(key, x)
    tree = arviz_base.from_dict(jax.tree.map(lambda x: x[None], groups) | {"observed_data": {"y": y}})
    return guide, result.params, tree
