"""Censored families by the logarithms of both tails, which NumPyro clips: beyond that its derivatives are 0.

Invariant: with F the distribution function of the base and S = 1 - F, log F and log S are computed for themselves, so
that neither is log (1 - p) of a p next to 1. A base that is not in `log_tails` keeps NumPyro's log densities.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from vipl._types import Array, ArrayLike, Float
from vipl.distributions._special_functions import log1mexp, log_ndtr

_POSITIVE = (dist.Exponential, dist.Weibull, dist.LogNormal)
_BASES = (dist.Normal, dist.Logistic, *_POSITIVE)


def log_tails(base: Any, x: ArrayLike) -> tuple[Array, Array]:
    """Log F(x) and log S(x); x may be infinite, or below the support."""
    x = jnp.asarray(x, jnp.result_type(float, x))
    below, above = x <= 0 if isinstance(base, _POSITIVE) else x == -jnp.inf, x == jnp.inf
    y = jnp.where(below | above, 1.0, x)  # so that no derivative is NaN there
    if isinstance(base, (dist.Exponential, dist.Weibull)):
        exponential = isinstance(base, dist.Exponential)
        hazard = base.rate * y if exponential else (y / jnp.asarray(base.scale)) ** jnp.asarray(base.concentration)
        log_f, log_s = log1mexp(jnp.asarray(-hazard)), -hazard
    else:
        z = ((jnp.log(y) if isinstance(base, dist.LogNormal) else y) - base.loc) / base.scale
        tail = (lambda z: -jax.nn.softplus(-z)) if isinstance(base, dist.Logistic) else log_ndtr
        log_f, log_s = tail(z), tail(-z)
    return (
        jnp.where(below, -jnp.inf, jnp.where(above, 0.0, log_f)),
        jnp.where(below, 0.0, jnp.where(above, -jnp.inf, log_s)),
    )


class LeftCensored(dist.LeftCensoredDistribution):
    """log F(x) where x is censored, log p(x) elsewhere."""

    def log_prob(self, value: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        """f[...], the log density."""
        if not isinstance(self.base_dist, _BASES):
            return super().log_prob(value)
        log_f, _ = log_tails(self.base_dist, jnp.where(self.censored, value, 1.0))
        return jnp.where(self.censored, log_f, self.base_dist.log_prob(jnp.where(self.censored, 1.0, value)))


class RightCensored(dist.RightCensoredDistribution):
    """log S(x) where x is censored, log p(x) elsewhere."""

    def log_prob(self, value: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        """f[...], the log density."""
        if not isinstance(self.base_dist, _BASES):
            return super().log_prob(value)
        _, log_s = log_tails(self.base_dist, jnp.where(self.censored, value, 1.0))
        return jnp.where(self.censored, log_s, self.base_dist.log_prob(jnp.where(self.censored, 1.0, value)))
