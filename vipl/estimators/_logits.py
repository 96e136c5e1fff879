"""Logits of a Bernoulli site, whichever way it is parametrized and wrapped."""

from __future__ import annotations

import jax.numpy as jnp
import numpyro.distributions as dist

from vipl._types import Array
from vipl.gen import Law
from vipl.gen._density import innermost


def logit(p: Array) -> Array:
    """Log p - log (1 - p); at 0 and 1 infinite, with a derivative of 0."""
    between = (p > 0) & (p < 1)
    q = jnp.where(between, p, 0.5)
    return jnp.where(between, jnp.log(q) - jnp.log1p(-q), jnp.where(p > 0.5, jnp.inf, -jnp.inf))


def bernoulli_logits(law: Law) -> Array | None:
    """f[...], the logits, of the shape of the draw; None where the law is not a Bernoulli."""
    d = innermost(law.dist)
    if isinstance(d, dist.BernoulliLogits):
        return jnp.broadcast_to(d.logits, law.dist.shape())
    if isinstance(d, dist.BernoulliProbs):
        return jnp.broadcast_to(logit(jnp.asarray(d.probs)), law.dist.shape())
    return None
