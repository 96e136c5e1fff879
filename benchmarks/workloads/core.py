"""The overhead of the core: a gradient step of a VAE the size of the digits, and 200 scalar sites."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

import vipl
from benchmarks.measure import Case
from vipl import sample

PIXELS, HIDDEN, LATENT, BATCH = 64, 200, 10, 64


def parameters(key: Any) -> dict[str, Any]:
    """Two two-layer networks."""
    sizes = {"e1": (PIXELS, HIDDEN), "e2": (HIDDEN, 2 * LATENT), "d1": (LATENT, HIDDEN), "d2": (HIDDEN, PIXELS)}
    keys = jax.random.split(key, len(sizes))
    return {
        name: (jax.random.normal(k, shape) / np.sqrt(shape[0]), jnp.zeros(shape[1]))
        for k, (name, shape) in zip(keys, sizes.items(), strict=True)
    }


def dense(params: Any, x: Any) -> Any:
    """x W + b."""
    return x @ params[0] + params[1]


def encode(params: Any, x: Any) -> tuple[Any, Any]:
    """Mean and scale of the latents."""
    out = dense(params["e2"], jax.nn.relu(dense(params["e1"], x)))
    return out[..., :LATENT], jax.nn.softplus(out[..., LATENT:]) + 1e-4


def decode(params: Any, z: Any) -> Any:
    """Logits of the pixels."""
    return dense(params["d2"], jax.nn.relu(dense(params["d1"], z)))


@vipl.gen
def model(params, n):
    """One batch of images."""
    z = sample("z", dist.Normal(jnp.zeros((n, LATENT)), 1.0).to_event(2))
    sample("x", dist.Bernoulli(logits=decode(params, z)).to_event(2))


@vipl.gen
def guide(params, x):
    """One batch of latents."""
    loc, scale = encode(params, x)
    sample("z", dist.Normal(loc, scale).to_event(2))


@vipl.expectation
def elbo(params, x):
    """The evidence lower bound of a batch."""
    q = guide(params, x).simulate()
    p = model(params, x.shape[0]).assess(q.choices | {"x": x})
    return (p.log_prob - q.log_prob) / x.shape[0]


def handwritten(key: Any, params: Any, x: Any) -> Any:
    """The same estimator, written by hand."""
    loc, scale = encode(params, x)
    eps = jax.random.normal(key, loc.shape)
    z = loc + scale * eps
    log_q = jnp.sum(-0.5 * ((z - loc) / scale) ** 2 - jnp.log(scale) - 0.5 * jnp.log(2 * jnp.pi))
    log_prior = jnp.sum(-0.5 * z**2 - 0.5 * jnp.log(2 * jnp.pi))
    logits = decode(params, z)
    log_x = jnp.sum(x * logits - jax.nn.softplus(logits))
    return (log_x + log_prior - log_q) / x.shape[0]


def cases(quick: bool) -> list[Case]:
    """The step, and the sites."""
    del quick
    x = (jax.random.uniform(jax.random.key(1), (BATCH, PIXELS)) < 0.4).astype(jnp.int32)
    step = {"vipl": elbo.estimate, "handwritten": handwritten}
    return [Case("core", "VAE step, 64-200-10, batch 64", step, (parameters(jax.random.key(0)), x)), *many_sites()]


def many_sites(n: int = 200) -> list[Case]:
    """One scalar site after another, against a draw of all at once."""

    @vipl.expectation
    def objective(loc):
        return sum(sample(f"x{i}", dist.Normal(loc[i], 1.0)) ** 2 for i in range(n))

    def vector(key, loc):
        return jnp.sum((loc + jax.random.normal(key, (n,))) ** 2)

    def scalars(key, loc):
        eps = jax.random.normal(key, (n,))
        return sum((loc[i] + eps[i]) ** 2 for i in range(n))

    loc = (jnp.linspace(-1.0, 1.0, n),)
    twins = {"one vector": vector, "each scalar used by itself": scalars}
    return [
        Case("core", f"{n} scalar sites; by hand: {name}", {"vipl": objective.estimate, "handwritten": twin}, loc)
        for name, twin in twins.items()
    ]
