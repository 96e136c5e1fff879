"""A mixture of two normals in order, its assignments summed out."""

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

LATENTS = ("share", "mu", "s")


def data():
    rng = np.random.default_rng(3)
    first = rng.random(300) < 0.35
    y = np.where(first, -1.5 + 0.5 * rng.standard_normal(300), 1.0 + 0.9 * rng.standard_normal(300))
    return {"y": jnp.asarray(y)}


def with_vipl(key, y):
    @vipl.gen
    def model():
        share = sample("share", dist.Dirichlet(jnp.full(2, 2.0)))
        loc = dist.Normal(jnp.zeros(2), jnp.array([3.0, 1.0])).to_event(1)
        mu = sample("mu", dist.TransformedDistribution(loc, dist.transforms.OrderedTransform()))
        s = sample("s", dist.LogNormal(jnp.zeros(2), 0.5))
        sample("y", dist.MixtureSameFamily(dist.Categorical(share), dist.Normal(mu, s)).expand([len(y)]))

    posterior = vipl.infer(model(), {"y": y}, key=key)
    return posterior, posterior.to_arviz(key)


def model(y=None, n=300):
    share = numpyro.sample("share", dist.Dirichlet(jnp.full(2, 2.0)))
    loc = dist.Normal(jnp.zeros(2), jnp.array([3.0, 1.0])).to_event(1)
    mu = numpyro.sample("mu", dist.TransformedDistribution(loc, dist.transforms.OrderedTransform()))
    s = numpyro.sample("s", dist.LogNormal(jnp.zeros(2), 0.5).to_event(1))
    with numpyro.plate("rows", n):
        numpyro.sample("y", dist.MixtureSameFamily(dist.Categorical(share), dist.Normal(mu, s)), obs=y)


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
