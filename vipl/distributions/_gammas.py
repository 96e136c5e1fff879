"""Gamma and the families made of it, by log densities that keep their digits where concentrations are large.

Invariant: `log_prob` is NumPyro's up to rounding. What cancels in it is cancelled on paper, in `log_gamma`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import betaln, xlogy

from vipl._types import Array, Float
from vipl.distributions import _special_functions as special
from vipl.distributions._special_functions import inexact


class Gamma(dist.Gamma):
    """log p(x) = a log r - log Γ(a) + (a - 1) log x - r x, also of large a."""

    def log_prob(self, value: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        """f[...], the log density."""
        rate = inexact(self.rate)
        log_rate = jnp.log(rate)
        return log_rate + special.log_gamma(inexact(self.concentration), rate * value, log_rate + jnp.log(value))


class Chi2(dist.Chi2):
    """A Gamma."""

    log_prob = Gamma.log_prob  # type: ignore[assignment]


class InverseGamma(dist.InverseGamma):
    """log p(x) = a log r - log Γ(a) - (a + 1) log x - r / x, also of large a, and of an x whose square overflows."""

    def log_prob(self, value: Float[Array, "*batch"], intermediates: None = None) -> Float[Array, "*batch"]:
        """f[...], the log density."""
        del intermediates
        base: Any = self.base_dist
        log_rate, log_x = jnp.log(base.rate), jnp.log(value)
        log_mean = log_rate - log_x  # not rate / x, whose derivative rate / x² may overflow
        return log_rate - 2 * log_x + special.log_gamma(base.concentration, jnp.exp(log_mean), log_mean)


class Beta(dist.Beta):
    """log p(x) = (a - 1) log x + (b - 1) log (1 - x) - log B(a, b), also of large a and b."""

    def log_prob(self, value: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        """f[...], the log density."""
        edge = (value == 0) | (value == 1)
        a, b = jnp.broadcast_arrays(*map(inexact, (self.concentration1, self.concentration0)))
        at_edge = xlogy(a - 1, value) + xlogy(b - 1, 1 - value) - betaln(a, b)
        x = jnp.where(edge, 0.5, value)
        parts, logs = jnp.stack([x, 1 - x], axis=-1), jnp.stack([jnp.log(x), jnp.log1p(-x)], axis=-1)
        inside = special.log_dirichlet(jnp.stack([a, b], axis=-1), parts, logs)
        return jnp.where(edge, jax.lax.stop_gradient(at_edge), inside)


class BetaProportion(dist.BetaProportion):
    """A Beta."""

    log_prob = Beta.log_prob  # type: ignore[assignment]


class Dirichlet(dist.Dirichlet):
    """log p(x) = log Γ(Σ a_i) + Σ_i ((a_i - 1) log x_i - log Γ(a_i)), also of large a_i."""

    def log_prob(self, value: Float[Array, "*batch n"]) -> Float[Array, "*batch"]:
        """f[...], the log density."""
        a = inexact(self.concentration)
        return special.log_dirichlet(a, value, jnp.log(value), jnp.sum(value, axis=-1) - 1)
