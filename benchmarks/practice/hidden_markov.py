"""A hidden Markov model of 200 steps, its states summed out."""

from typing import Any

import arviz_base
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jax import lax
from jax.scipy.special import logsumexp
from numpyro.infer import SVI, Predictive, Trace_ELBO
from numpyro.infer.autoguide import AutoMultivariateNormal

import vipl
from vipl import sample

LATENTS = ("rows", "mu", "s")


def data():
    rng = np.random.default_rng(5)
    z = [0]
    for _ in range(199):
        z.append(z[-1] if rng.random() < (0.9, 0.8)[z[-1]] else 1 - z[-1])
    return {"y": jnp.asarray(np.array([-1.0, 1.0])[z] + 0.7 * rng.standard_normal(200))}


def with_vipl(key, y):
    @vipl.gen
    def chain(rows, mu, s):
        def step(probs, _):
            z = sample("z", dist.Categorical(probs))
            sample("y", dist.Normal(mu[z], s))
            return rows[z], None

        lax.scan(step, jnp.full(2, 0.5), None, length=len(y))

    @vipl.gen
    def model():
        rows = sample("rows", dist.Dirichlet(1.0 + 4.0 * jnp.eye(2)))
        loc = dist.Normal(jnp.zeros(2), jnp.array([2.0, 1.0])).to_event(1)
        mu = sample("mu", dist.TransformedDistribution(loc, dist.transforms.OrderedTransform()))
        s = sample("s", dist.LogNormal(0.0, 0.5))
        sample("y", vipl.marginal(chain(rows, mu, s), "y", vipl.inference.ForwardBackward()))

    posterior = vipl.infer(model(), {"y": {"y": y}}, key=key)
    return posterior, posterior.to_arviz(key)


def model(y=None, n=200):
    rows: Any = numpyro.sample("rows", dist.Dirichlet(1.0 + 4.0 * jnp.eye(2)).to_event(1))
    loc = dist.Normal(jnp.zeros(2), jnp.array([2.0, 1.0])).to_event(1)
    mu: Any = numpyro.sample("mu", dist.TransformedDistribution(loc, dist.transforms.OrderedTransform()))
    s = numpyro.sample("s", dist.LogNormal(0.0, 0.5))

    def forward(message, row):
        return logsumexp(message[:, None] + jnp.log(rows), 0) + row, None

    def step(carry, key):
        key_y, key_z = jax.random.split(key)
        y = mu[carry] + s * jax.random.normal(key_y)
        return jax.random.categorical(key_z, jnp.log(rows[carry])), y

    if y is None:
        key: Any = numpyro.prng_key()
        keys = jax.random.split(key, n + 1)
        first = jax.random.categorical(keys[0], jnp.zeros(2))
        numpyro.deterministic("y", lax.scan(step, first, keys[1:])[1])
    else:
        seen = dist.Normal(mu, s).log_prob(y[:, None])
        numpyro.factor("log_p", logsumexp(lax.scan(forward, jnp.log(0.5) + seen[0], seen[1:])[0]))


def with_numpyro(key, num_steps, rate, y):
    guide = AutoMultivariateNormal(model)
    svi = SVI(model, guide, optax.adam(rate), Trace_ELBO())
    result = svi.run(key, num_steps, y, progress_bar=False)
    draws = guide.sample_posterior(key, result.params, sample_shape=(1000,))
    groups = {"posterior": draws, "posterior_predictive": Predictive(model, draws)(key)}
    groups["prior"] = Predictive(model, num_samples=1000)(key)
    tree = arviz_base.from_dict(jax.tree.map(lambda x: x[None], groups) | {"observed_data": {"y": y}})
    return guide, result.params, tree
