"""A variational autoencoder: encoder pixels-200-20, decoder 10-200-pixels, leaky ReLU."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax
from numpyro.infer import RenyiELBO, Trace_ELBO

import vipl
from benchmarks.data import binary_images
from benchmarks.measure import Case
from vipl import objectives, sample

HIDDEN, LATENT = 200, 10


def parameters(pixels: int) -> dict[str, Any]:
    """Two two-layer networks."""
    sizes = {"e1": (pixels, HIDDEN), "e2": (HIDDEN, 2 * LATENT), "d1": (LATENT, HIDDEN), "d2": (HIDDEN, pixels)}
    keys = jax.random.split(jax.random.key(0), len(sizes))
    return {
        name: (jax.random.normal(k, shape) / np.sqrt(shape[0]), jnp.zeros(shape[1]))
        for k, (name, shape) in zip(keys, sizes.items(), strict=True)
    }


def dense(params: Any, x: Any) -> Any:
    """x W + b."""
    return x @ params[0] + params[1]


def encode(params: Any, x: Any) -> tuple[Any, Any]:
    """Mean and scale of the latents."""
    out = dense(params["e2"], jax.nn.leaky_relu(dense(params["e1"], x)))
    return out[..., :LATENT], jax.nn.softplus(out[..., LATENT:]) + 1e-4


def decode(params: Any, z: Any) -> Any:
    """Logits of the pixels."""
    return dense(params["d2"], jax.nn.leaky_relu(dense(params["d1"], z)))


# --- vipl: a batch as one program, and an image as one program -----------------------------------------------------


@vipl.gen
def model(params, shape):
    """Images; `shape` is () or (batch,)."""
    z = sample("z", dist.Normal(jnp.zeros((*shape, LATENT)), 1.0).to_event())
    sample("x", dist.Bernoulli(logits=decode(params, z)).to_event())


@vipl.gen
def guide(params, x):
    """Latents."""
    loc, scale = encode(params, x)
    sample("z", dist.Normal(loc, scale).to_event())


@vipl.expectation
def elbo(params, x):
    """Per image."""
    return objectives.elbo(model(params, x.shape[:-1]), guide(params, x), {"x": x}) / x.shape[0]


@vipl.expectation
def landing(params, x):
    """Per image, sticking the landing."""
    return objectives.sticking_the_landing(model(params, x.shape[:-1]), guide(params, x), {"x": x}) / x.shape[0]


@vipl.expectation
def iwelbo(params, x):
    """Per image, 8 particles."""

    def one(x):
        return objectives.iwelbo(model(params, ()), guide(params, x), {"x": x}, num_particles=8)

    return jnp.mean(jax.vmap(one)(x))


# --- by hand ----------------------------------------------------------------------------------------------------------


def log_weight(params, x, z, loc, scale):
    """log p(x, z) - log q(z), of each image."""
    log_q = jnp.sum(-0.5 * ((z - loc) / scale) ** 2 - jnp.log(scale), -1)
    log_prior = -0.5 * jnp.sum(z**2, -1)
    logits = decode(params, z)
    return jnp.sum(x * logits - jax.nn.softplus(logits), -1) + log_prior - log_q


def elbo_by_hand(key, params, x):
    loc, scale = encode(params, x)
    z = loc + scale * jax.random.normal(key, loc.shape)
    return jnp.mean(log_weight(params, x, z, loc, scale))


def landing_by_hand(key, params, x):
    loc, scale = encode(params, x)
    z = loc + scale * jax.random.normal(key, loc.shape)
    return jnp.mean(log_weight(params, x, z, lax.stop_gradient(loc), lax.stop_gradient(scale)))


def iwelbo_by_hand(key, params, x):
    loc, scale = encode(params, x)
    z = loc + scale * jax.random.normal(key, (8, *loc.shape))
    log_w = log_weight(params, x, z, loc, scale)
    return jnp.mean(jax.nn.logsumexp(log_w, axis=0)) - jnp.log(8.0)


# --- NumPyro ---------------------------------------------------------------------------------------------------------


def numpyro_model(params, x):
    z = numpyro.sample("z", dist.Normal(jnp.zeros((*x.shape[:-1], LATENT)), 1.0).to_event())
    numpyro.sample("x", dist.Bernoulli(logits=decode(params, z)).to_event(), obs=x)


def numpyro_guide(params, x):
    loc, scale = encode(params, x)
    numpyro.sample("z", dist.Normal(loc, scale).to_event())


def numpyro_elbo(key, params, x):
    elbo: Any = Trace_ELBO()
    return -elbo.loss(key, {}, numpyro_model, numpyro_guide, params, x) / x.shape[0]


def numpyro_iwelbo(key, params, x):
    def one(key, x):
        return -RenyiELBO(alpha=0.0, num_particles=8).loss(key, {}, numpyro_model, numpyro_guide, params, x)

    return jnp.mean(jax.vmap(one)(jax.random.split(key, x.shape[0]), x))


OBJECTIVES = {
    "ELBO": {"vipl": elbo.estimate, "handwritten": elbo_by_hand, "numpyro": numpyro_elbo},
    "IWELBO 8": {"vipl": iwelbo.estimate, "handwritten": iwelbo_by_hand, "numpyro": numpyro_iwelbo},
    "sticking the landing": {"vipl": landing.estimate, "handwritten": landing_by_hand},
}


def cases(quick: bool) -> list[Case]:
    """ELBO at five sizes, the others at two."""
    sizes = {"ELBO": (64, 128, 256, 512, 1024), "IWELBO 8": (64, 256), "sticking the landing": (64, 512)}
    x, name = binary_images(1024)
    params = parameters(x.shape[1])
    return [
        Case(
            f"VAE on {name}",
            f"{objective}, batch {n}",
            OBJECTIVES[objective],
            (params, jnp.asarray(x[:n])),
            samples=160 if n <= 128 else 48,
        )
        for objective, batches in sizes.items()
        for n in (batches[:1] if quick else batches)
    ]
