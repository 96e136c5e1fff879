"""A Gaussian-process classifier of 80 points, whitened."""

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

LATENTS = ("amplitude", "length", "f")


def data():
    rng = np.random.default_rng(2)
    x = np.sort(rng.uniform(-3.0, 3.0, 80))
    y = rng.random(80) < 1 / (1 + np.exp(-3.0 * np.sin(1.5 * x)))
    return {"x": jnp.asarray(x), "y": jnp.asarray(y.astype(int))}


def with_vipl(key, x, y):
    @vipl.gen
    def model(x):
        amplitude = sample("amplitude", dist.LogNormal(0.5, 0.5))
        length = sample("length", dist.LogNormal(0.0, 0.5))
        f = sample("f", dist.Normal(jnp.zeros(len(x)), 1.0))
        cov = amplitude**2 * jnp.exp(-0.5 * ((x[:, None] - x) / length) ** 2) + 1e-4 * jnp.eye(len(x))
        sample("y", dist.Bernoulli(logits=jnp.linalg.cholesky(cov) @ f))

    posterior = vipl.infer(model(x), {"y": y}, key=key)
    return posterior, posterior.to_arviz(key)


def model(x, y=None):
    amplitude = numpyro.sample("amplitude", dist.LogNormal(0.5, 0.5))
    length = numpyro.sample("length", dist.LogNormal(0.0, 0.5))
    f = numpyro.sample("f", dist.Normal(jnp.zeros(len(x)), 1.0).to_event(1))
    cov = amplitude**2 * jnp.exp(-0.5 * ((x[:, None] - x) / length) ** 2) + 1e-4 * jnp.eye(len(x))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("y", dist.Bernoulli(logits=jnp.linalg.cholesky(cov) @ f), obs=y)


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
