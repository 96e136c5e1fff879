"""Generators of f-divergences, as functions of the log ratio of densities.

D_f(p || q) = E_q[f(p / q)], f convex with f(1) = 0. The ratio t underflows where its logarithm l does not: t log t is
then NaN, and -log t infinite. So each generator is f(exp(l)), written in l.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from vipl._types import Array, Float


class Generator(abc.ABC):
    """Base of the generators of `f_divergence`; hashable objects."""

    @abc.abstractmethod
    def of_log_ratio(self, log_ratio: Float[Array, ""]) -> Float[Array, ""]:
        """f(exp(l)), for l = log p(z) - log q(z): f[]."""

    def __call__(self, ratio: Float[Array, ""]) -> Float[Array, ""]:
        """f(t), by the logarithm of t."""
        return self.of_log_ratio(jnp.log(ratio))


@dataclass(frozen=True)
class ForwardKL(Generator):
    """KL(p || q): f(t) = t log t."""

    def of_log_ratio(self, log_ratio: Float[Array, ""]) -> Float[Array, ""]:
        """Exp(l) l; 0 where p is 0."""
        possible = log_ratio > -jnp.inf
        safe = jnp.where(possible | jnp.isnan(log_ratio), log_ratio, 0.0)
        return jnp.where(possible | jnp.isnan(log_ratio), jnp.exp(safe) * safe, 0.0)


@dataclass(frozen=True)
class ReverseKL(Generator):
    """KL(q || p): f(t) = -log t."""

    def of_log_ratio(self, log_ratio: Float[Array, ""]) -> Float[Array, ""]:
        """-l."""
        return -log_ratio


@dataclass(frozen=True)
class ChiSquared(Generator):
    """Pearson's chi-squared divergence: f(t) = (t - 1)²."""

    def of_log_ratio(self, log_ratio: Float[Array, ""]) -> Float[Array, ""]:
        """(exp(l) - 1)²."""
        return jnp.expm1(log_ratio) ** 2


@dataclass(frozen=True)
class TotalVariation(Generator):
    """Total variation distance: f(t) = |t - 1| / 2."""

    def of_log_ratio(self, log_ratio: Float[Array, ""]) -> Float[Array, ""]:
        """|exp(l) - 1| / 2."""
        return jnp.abs(jnp.expm1(log_ratio)) / 2.0


@dataclass(frozen=True)
class SquaredHellinger(Generator):
    """Squared Hellinger distance, without the factor 1/2: f(t) = (sqrt t - 1)²."""

    def of_log_ratio(self, log_ratio: Float[Array, ""]) -> Float[Array, ""]:
        """(exp(l / 2) - 1)²."""
        return jnp.expm1(log_ratio / 2.0) ** 2


@dataclass(frozen=True)
class JensenShannon(Generator):
    """Jensen-Shannon divergence, (KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2."""

    def of_log_ratio(self, log_ratio: Float[Array, ""]) -> Float[Array, ""]:
        """(t log(2 t / (1 + t)) + log(2 / (1 + t))) / 2."""
        log_2 = jnp.log(2.0)
        first = ForwardKL().of_log_ratio(log_ratio) - jnp.exp(log_ratio) * (jax.nn.softplus(log_ratio) - log_2)
        return (first + log_2 - jax.nn.softplus(log_ratio)) / 2.0


@dataclass(frozen=True)
class OfLogRatio(Generator):
    """A generator of one's own.

    Attributes:
      fn: l -> f(exp(l)).
    """

    fn: Callable[[Float[Array, ""]], Float[Array, ""]]

    def of_log_ratio(self, log_ratio: Float[Array, ""]) -> Float[Array, ""]:
        """The function's value."""
        return self.fn(log_ratio)
