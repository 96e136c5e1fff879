"""Truncated families.

- They have NaN as their derivative where a bound is infinite.
- The mass of a Normal or a Cauchy between two bounds in a tail is a difference of numbers that round to the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import jax.numpy as jnp
import numpyro.distributions as dist
from numpy.typing import ArrayLike

from vipl._types import Array, Float
from vipl.distributions._special_functions import log1mexp, log_ndtr_of_bound


def _tail(cdf: Callable[[Array], Array], loc: Array, bound: Array, sign: Array | float) -> Array:
    """The distribution function at a bound that may be infinite, reflected at the location where `sign` is -1."""
    finite = jnp.isfinite(bound)
    at = jnp.where(finite, bound, loc)
    return jnp.where(finite, cdf(loc - sign * (loc - at)), jnp.where(sign * bound > 0, 1.0, 0.0))


class LocationScale(Protocol):
    """What is used here of a base distribution of NumPyro's."""

    loc: Array
    scale: Array

    def cdf(self, value: Array) -> Array:
        """P(x <= value)."""
        ...

    def log_prob(self, value: Array) -> Array:
        """The log density."""
        ...


def _standard(base: LocationScale, bound: ArrayLike) -> Array:
    return (jnp.asarray(bound) - base.loc) / base.scale


class TwoSidedTruncatedDistribution(dist.TwoSidedTruncatedDistribution):
    """Bounds may be infinite. The mass of a Normal between them is computed from the nearer tail."""

    base_dist: LocationScale
    low: Array
    high: Array

    def _side(self) -> Array:
        return jnp.where(self.base_dist.loc >= self.low, 1.0, -1.0)

    @property
    def _tail_prob_at_low(self) -> Array:
        return _tail(self.base_dist.cdf, self.base_dist.loc, jnp.asarray(self.low), self._side())

    @property
    def _tail_prob_at_high(self) -> Array:
        return _tail(self.base_dist.cdf, self.base_dist.loc, jnp.asarray(self.high), self._side())

    @property
    def _log_diff_tail_probs(self) -> Array:
        base = self.base_dist
        if isinstance(base, dist.Normal):
            return log_normal_mass(_standard(base, self.low), _standard(base, self.high))
        if isinstance(base, dist.Cauchy):
            return _log_cauchy_mass(_standard(base, self.low), _standard(base, self.high))
        return jnp.log(self._side() * (self._tail_prob_at_high - self._tail_prob_at_low))


class LeftTruncatedDistribution(dist.LeftTruncatedDistribution):
    """The bound may be infinite."""

    base_dist: LocationScale
    low: Array

    @property
    def _tail_prob_at_low(self) -> Array:
        sign = jnp.where(self.base_dist.loc >= self.low, 1.0, -1.0)
        return _tail(self.base_dist.cdf, self.base_dist.loc, jnp.asarray(self.low), sign)

    def log_prob(self, value: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        """f[...], the log density."""
        if isinstance(self.base_dist, dist.Cauchy):
            bound = _standard(self.base_dist, self.low)
            return self.base_dist.log_prob(value) - jnp.log(jnp.atan2(1.0, bound) / jnp.pi)
        if not isinstance(self.base_dist, dist.Normal):
            return super().log_prob(value)
        low = _standard(self.base_dist, self.low)
        return self.base_dist.log_prob(value) - log_normal_mass(low, jnp.full_like(low, jnp.inf))


class RightTruncatedDistribution(dist.RightTruncatedDistribution):
    """The bound may be infinite."""

    base_dist: LocationScale

    @property
    def _cdf_at_high(self) -> Array:
        return _tail(self.base_dist.cdf, self.base_dist.loc, jnp.asarray(self.high), 1.0)

    def log_prob(self, value: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        """f[...], the log density."""
        if isinstance(self.base_dist, dist.Cauchy):
            bound = _standard(self.base_dist, self.high)
            return self.base_dist.log_prob(value) - jnp.log(jnp.atan2(1.0, -bound) / jnp.pi)
        if not isinstance(self.base_dist, dist.Normal):
            return super().log_prob(value)
        high = _standard(self.base_dist, self.high)
        return self.base_dist.log_prob(value) - log_normal_mass(jnp.full_like(high, -jnp.inf), high)


def _log_cauchy_mass(low: Array, high: Array) -> Array:
    """Log of the mass between two bounds, which may be infinite: of the angle between (1, low) and (1, high)."""
    left, right = jnp.isfinite(low), jnp.isfinite(high)
    a, b = jnp.where(left, low, 0.0), jnp.where(right, high, 0.0)
    both = left & right
    y = jnp.where(both, jnp.where(both, b - a, 1.0), 1.0)
    x = jnp.where(both, 1 + a * b, jnp.where(left, a, jnp.where(right, -b, -1.0)))
    return jnp.where(left | right, jnp.log(jnp.atan2(y, x) / jnp.pi), 0.0)


def log_normal_mass(low: Array, high: Array) -> Array:
    """Log (Φ(high) - Φ(low)), from the tail in which the interval lies; bounds may be infinite."""
    low, high = jnp.where(low > 0, -high, low), jnp.where(low > 0, -low, high)
    log_high, log_low = log_ndtr_of_bound(high), log_ndtr_of_bound(low)
    gap = jnp.where(jnp.isfinite(low), log_low - log_high, -1.0)
    return log_high + jnp.where(jnp.isfinite(low), log1mexp(gap), 0.0)
