"""Sums of numbers of which the logarithms are known, where all of them may be zero."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from numpyro.distributions import constraints

from vipl._types import Array, Bool, Float


def log_total(log_terms: Array, axis: int = 0) -> Array:
    """Log Σ exp of the terms along an axis; -inf, without derivative, where all are zero.

    The derivative of `jax.nn.logsumexp` is 0 / 0 there: NaN for all that reads it, also where it has no weight.
    """
    some = jnp.any(log_terms != -jnp.inf, axis=axis)
    safe = jnp.where(jnp.expand_dims(some, axis), log_terms, 0.0)
    return jnp.where(some, jax.nn.logsumexp(safe, axis=axis), -jnp.inf)


class _LogWeights(constraints.Constraint):
    """Vectors of logarithms of weights, of which some, but not all, may be zero."""

    event_dim = 1

    def __call__(self, x: Array) -> Bool[Array, "..."]:
        """Whether they are."""
        return jnp.all(x < jnp.inf, axis=-1) & jnp.any(x > -jnp.inf, axis=-1)

    def feasible_like(self, prototype: Array) -> Float[Array, "..."]:
        """Equal weights."""
        return jnp.zeros_like(prototype)


log_weights = _LogWeights()
