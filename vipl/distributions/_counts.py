"""Counts: log probabilities of large ones are differences of large log gamma functions, which `_special` has not."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from vipl.distributions import _special
from vipl.distributions._special import floating, times_log, times_log1m


class Poisson(dist.Poisson):
    """log p(x) = x log r - r - log x!, also of large counts, and of a rate of 0."""

    def log_prob(self, value: Any) -> Any:
        """f[...], the log probability."""
        rate = floating(self.rate)
        return _special.log_poisson(floating(value), rate, times_log(jnp.ones_like(rate), rate))


class GammaPoisson(dist.GammaPoisson):
    """log p(x) = log (Γ(a + x) / Γ(a) / x!) - a log (1 + 1 / r) - x log (1 + r)."""

    def log_prob(self, value: Any) -> Any:
        """f[...], the log probability."""
        a, r = floating(self.concentration), floating(self.rate)
        log_p = -jax.nn.softplus(-jnp.log(r))
        return _special.log_negative_binomial(floating(value), a, r / (1 + r), 1 / (1 + r), log_p, -jnp.log1p(r))


class NegativeBinomial2(dist.NegativeBinomial2):
    """A GammaPoisson."""

    log_prob = GammaPoisson.log_prob


class NegativeBinomialProbs(dist.NegativeBinomialProbs):
    """log p(x) = log (Γ(a + x) / Γ(a) / x!) + a log (1 - p) + x log p."""

    def log_prob(self, value: Any) -> Any:
        """f[...], the log probability."""
        a, p = floating(self.total_count), floating(self.probs)
        one = jnp.ones_like(p)
        logs = times_log1m(one, p), times_log(one, p)
        return _special.log_negative_binomial(floating(value), a, 1 - p, p, *logs)


class NegativeBinomialLogits(dist.NegativeBinomialLogits):
    """log p(x) = log (Γ(a + x) / Γ(a) / x!) - a softplus(φ) - x softplus(-φ)."""

    def log_prob(self, value: Any) -> Any:
        """f[...], the log probability."""
        a, logits = floating(self.total_count), floating(self.logits)
        probs, logs = jax.nn.sigmoid, jax.nn.softplus
        return _special.log_negative_binomial(
            floating(value), a, probs(-logits), probs(logits), -logs(logits), -logs(-logits)
        )


def _pair(a: Any, b: Any) -> Any:
    return jnp.stack(jnp.broadcast_arrays(a, b), axis=-1)


class BetaBinomial(dist.BetaBinomial):
    """log p(x) = log (n choose x) + log B(a + x, b + n - x) - log B(a, b)."""

    def log_prob(self, value: Any) -> Any:
        """f[...], the log probability."""
        a, b = floating(self.concentration1), floating(self.concentration0)
        x = floating(value)
        return _special.log_polya(_pair(x, floating(self.total_count) - x), _pair(a, b))


class BetaNegativeBinomial(dist.BetaNegativeBinomial):
    """log p(x) = log (Γ(n + x) / Γ(n) / x!) + log B(a + x, b + n) - log B(a, b)."""

    def log_prob(self, value: Any) -> Any:
        """f[...], the log probability."""
        x, n = floating(value), floating(self.n)
        a, b = floating(self.concentration1), floating(self.concentration0)
        return jnp.log(n) - jnp.log(x + n) + _special.log_polya(_pair(x, n), _pair(a, b))


class DirichletMultinomial(dist.DirichletMultinomial):
    """log p(x) = log n! + log B(a + x) - log B(a) - Σ_i log x_i!."""

    def log_prob(self, value: Any) -> Any:
        """f[...], the log probability."""
        return _special.log_polya(floating(value), floating(self.concentration))
