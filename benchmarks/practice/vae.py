"""A variational autoencoder of the 1797 digits of scikit-learn, by minibatches."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from flax import nnx
from numpyro.contrib.module import nnx_module
from numpyro.infer import SVI, Trace_ELBO
from sklearn.datasets import load_digits

import vipl
from vipl import sample
from vipl.interop.flax import functional


class Encoder(nnx.Module):
    """Images [..., 64] -> location and log scale of z, [..., 8] each."""

    def __init__(self, rngs):
        self.hidden, self.out = nnx.Linear(64, 256, rngs=rngs), nnx.Linear(256, 16, rngs=rngs)

    def __call__(self, images) -> Any:
        return jnp.split(self.out(nnx.gelu(self.hidden(images / 16 - 0.5))), 2, axis=-1)


class Decoder(nnx.Module):
    """The z [..., 8] -> logits of the pixels [..., 64]."""

    def __init__(self, rngs):
        self.hidden, self.out = nnx.Linear(8, 256, rngs=rngs), nnx.Linear(256, 64, rngs=rngs)

    def __call__(self, z) -> Any:
        return self.out(nnx.gelu(self.hidden(z)))


def data():
    digits: Any = load_digits()
    images = digits.data[np.random.default_rng(0).permutation(1797)].astype("int32")
    return {"train": jnp.asarray(images[297:]), "held_out": jnp.asarray(images[:297])}


def with_vipl(key, train, held_out):
    params, networks = functional(nnx.Dict(encoder=Encoder(nnx.Rngs(0)), decoder=Decoder(nnx.Rngs(1))))

    @vipl.gen
    def model(params, images):
        z = sample("z", dist.Normal(jnp.zeros((len(images), 8)), 1.0))
        sample("image", dist.Binomial(16, logits=networks(params).decoder(z)))

    @vipl.gen
    def guide(params, images):
        loc, log_scale = networks(params).encoder(images)
        sample("z", dist.Normal(loc, jnp.exp(log_scale)))

    bound = vipl.expectation(lambda p, x: vipl.objectives.elbo(model(p, x), guide(p, x), {"image": x}) / len(x))
    options = {"data": train, "batch_size": 100, "num_steps": 5000, "progress": False}
    fitted = vipl.fit(bound, params, optax.adam(1e-3), key=key, **options)
    return bound.estimate(key, fitted.params, held_out, num_samples=10)


def model(images, batch_size=None):
    decode = nnx_module("decoder", Decoder(nnx.Rngs(1)))
    with numpyro.plate("images", len(images), subsample_size=batch_size) as rows:
        z = numpyro.sample("z", dist.Normal(jnp.zeros(8), 1.0).to_event(1))
        numpyro.sample("image", dist.Binomial(16, logits=decode(z)).to_event(1), obs=images[rows])


def guide(images, batch_size=None):
    encode = nnx_module("encoder", Encoder(nnx.Rngs(0)))
    with numpyro.plate("images", len(images), subsample_size=batch_size) as rows:
        loc, log_scale = encode(images[rows])
        numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))


def with_numpyro(key, train, held_out):
    svi = SVI(model, guide, optax.adam(1e-3), Trace_ELBO())
    result = svi.run(key, 5000, train, batch_size=100, progress_bar=False)
    loss = jax.jit(lambda params: Trace_ELBO(num_particles=10).loss(key, params, model, guide, held_out))
    return -loss(result.params) / len(held_out)
