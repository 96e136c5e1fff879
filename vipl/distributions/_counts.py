"""Counts: log probabilities of large ones are differences of large log gamma functions, which are avoided here."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from vipl._types import Array, ArrayLike, Float, Num
from vipl.distributions import _special_functions as special
from vipl.distributions._special_functions import floating, times_log, times_log1m


class Poisson(dist.Poisson):
    """log p(x) = x log r - r - log x!, also of large counts, and of a rate of 0."""

    def log_prob(self, value: Num[ArrayLike, "*batch"]) -> Float[Array, "*batch"]:
        """f[...], the log probability."""
        rate = floating(self.rate)
        return special.log_poisson(floating(value), rate, times_log(jnp.ones_like(rate), rate))


class GammaPoisson(dist.GammaPoisson):
    """log p(x) = log (Γ(a + x) / Γ(a) / x!) - a log (1 + 1 / r) - x log (1 + r)."""

    def log_prob(self, value: Num[ArrayLike, "*batch"]) -> Float[Array, "*batch"]:
        """f[...], the log probability."""
        a, r = floating(self.concentration), floating(self.rate)
        log_p = -jax.nn.softplus(-jnp.log(r))
        return special.log_negative_binomial(floating(value), a, r / (1 + r), 1 / (1 + r), log_p, -jnp.log1p(r))


class NegativeBinomial2(dist.NegativeBinomial2):
    """A GammaPoisson."""

    log_prob = GammaPoisson.log_prob


class NegativeBinomialProbs(dist.NegativeBinomialProbs):
    """log p(x) = log (Γ(a + x) / Γ(a) / x!) + a log (1 - p) + x log p."""

    def log_prob(self, value: Num[ArrayLike, "*batch"]) -> Float[Array, "*batch"]:
        """f[...], the log probability."""
        a, p = floating(self.total_count), floating(self.probs)
        one = jnp.ones_like(p)
        logs = times_log1m(one, p), times_log(one, p)
        return special.log_negative_binomial(floating(value), a, 1 - p, p, *logs)


class NegativeBinomialLogits(dist.NegativeBinomialLogits):
    """log p(x) = log (Γ(a + x) / Γ(a) / x!) - a softplus(φ) - x softplus(-φ)."""

    def log_prob(self, value: Num[ArrayLike, "*batch"]) -> Float[Array, "*batch"]:
        """f[...], the log probability."""
        a, logits = floating(self.total_count), floating(self.logits)
        probs, logs = jax.nn.sigmoid, jax.nn.softplus
        return special.log_negative_binomial(
            floating(value), a, probs(-logits), probs(logits), -logs(logits), -logs(-logits)
        )


def _pair(a: Array, b: Array) -> Array:
    return jnp.stack(jnp.broadcast_arrays(a, b), axis=-1)


class BetaBinomial(dist.BetaBinomial):
    """log p(x) = log (n choose x) + log B(a + x, b + n - x) - log B(a, b)."""

    def log_prob(self, value: Num[ArrayLike, "*batch"]) -> Float[Array, "*batch"]:
        """f[...], the log probability."""
        a, b = floating(self.concentration1), floating(self.concentration0)
        x = floating(value)
        return special.log_polya(_pair(x, floating(self.total_count) - x), _pair(a, b))


class BetaNegativeBinomial(dist.BetaNegativeBinomial):
    """log p(x) = log (Γ(n + x) / Γ(n) / x!) + log B(a + x, b + n) - log B(a, b)."""

    def log_prob(self, value: Num[ArrayLike, "*batch"]) -> Float[Array, "*batch"]:
        """f[...], the log probability."""
        x, n = floating(value), floating(self.n)
        a, b = floating(self.concentration1), floating(self.concentration0)
        return jnp.log(n) - jnp.log(x + n) + special.log_polya(_pair(x, n), _pair(a, b))


class DirichletMultinomial(dist.DirichletMultinomial):
    """log p(x) = log n! + log B(a + x) - log B(a) - Σ_i log x_i!."""

    def log_prob(self, value: Num[ArrayLike, "*batch n"]) -> Float[Array, "*batch"]:
        """f[...], the log probability."""
        return special.log_polya(floating(value), floating(self.concentration))
