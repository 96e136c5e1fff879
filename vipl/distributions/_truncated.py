"""Truncated families.

- They have NaN as their derivative where a bound is infinite.
- The mass of a Normal or a Cauchy between two bounds in a tail is a difference of numbers that round to the same.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist

from vipl.distributions._special import log1mexp, log_ndtr_of_bound


def _tail(cdf: Any, loc: Any, bound: Any, sign: Any) -> Any:
    """The distribution function at a bound that may be infinite, reflected at the location where `sign` is -1."""
    finite = jnp.isfinite(bound)
    at = jnp.where(finite, bound, loc)
    return jnp.where(finite, cdf(loc - sign * (loc - at)), jnp.where(sign * bound > 0, 1.0, 0.0))


def _base(d: Any) -> Any:
    return d.base_dist


def _standard(base: Any, bound: Any) -> Any:
    return (jnp.asarray(bound) - base.loc) / base.scale


class TwoSidedTruncatedDistribution(dist.TwoSidedTruncatedDistribution):
    """Bounds may be infinite. The mass of a Normal between them is computed from the nearer tail."""

    def _side(self) -> Any:
        return jnp.where(_base(self).loc >= self.low, 1.0, -1.0)

    @property
    def _tail_prob_at_low(self) -> Any:
        return _tail(_base(self).cdf, _base(self).loc, jnp.asarray(self.low), self._side())

    @property
    def _tail_prob_at_high(self) -> Any:
        return _tail(_base(self).cdf, _base(self).loc, jnp.asarray(self.high), self._side())

    @property
    def _log_diff_tail_probs(self) -> Any:
        base = _base(self)
        if isinstance(base, dist.Normal):
            return log_normal_mass(_standard(base, self.low), _standard(base, self.high))
        if isinstance(base, dist.Cauchy):
            return _log_cauchy_mass(_standard(base, self.low), _standard(base, self.high))
        return jnp.log(self._side() * (self._tail_prob_at_high - self._tail_prob_at_low))


class LeftTruncatedDistribution(dist.LeftTruncatedDistribution):
    """The bound may be infinite."""

    @property
    def _tail_prob_at_low(self) -> Any:
        sign = jnp.where(_base(self).loc >= self.low, 1.0, -1.0)
        return _tail(_base(self).cdf, _base(self).loc, jnp.asarray(self.low), sign)

    def log_prob(self, value: Any) -> Any:
        """f[...], the log density."""
        if isinstance(_base(self), dist.Cauchy):
            bound = _standard(_base(self), self.low)
            return _base(self).log_prob(value) - jnp.log(jnp.atan2(1.0, bound) / jnp.pi)
        if not isinstance(_base(self), dist.Normal):
            return super().log_prob(value)
        low = _standard(_base(self), self.low)
        return _base(self).log_prob(value) - log_normal_mass(low, jnp.full_like(low, jnp.inf))


class RightTruncatedDistribution(dist.RightTruncatedDistribution):
    """The bound may be infinite."""

    @property
    def _cdf_at_high(self) -> Any:
        return _tail(_base(self).cdf, _base(self).loc, jnp.asarray(self.high), 1.0)

    def log_prob(self, value: Any) -> Any:
        """f[...], the log density."""
        if isinstance(_base(self), dist.Cauchy):
            bound = _standard(_base(self), self.high)
            return _base(self).log_prob(value) - jnp.log(jnp.atan2(1.0, -bound) / jnp.pi)
        if not isinstance(_base(self), dist.Normal):
            return super().log_prob(value)
        high = _standard(_base(self), self.high)
        return _base(self).log_prob(value) - log_normal_mass(jnp.full_like(high, -jnp.inf), high)


def _log_cauchy_mass(low: Any, high: Any) -> Any:
    """Log of the mass between two bounds, which may be infinite: of the angle between (1, low) and (1, high)."""
    left, right = jnp.isfinite(low), jnp.isfinite(high)
    a, b = jnp.where(left, low, 0.0), jnp.where(right, high, 0.0)
    both = left & right
    y = jnp.where(both, jnp.where(both, b - a, 1.0), 1.0)
    x = jnp.where(both, 1 + a * b, jnp.where(left, a, jnp.where(right, -b, -1.0)))
    return jnp.where(left | right, jnp.log(jnp.atan2(y, x) / jnp.pi), 0.0)


def log_normal_mass(low: Any, high: Any) -> Any:
    """Log (Φ(high) - Φ(low)), from the tail in which the interval lies; bounds may be infinite."""
    low, high = jnp.where(low > 0, -high, low), jnp.where(low > 0, -low, high)
    log_high, log_low = log_ndtr_of_bound(high), log_ndtr_of_bound(low)
    gap = jnp.where(jnp.isfinite(low), log_low - log_high, -1.0)
    return log_high + jnp.where(jnp.isfinite(low), log1mexp(gap), 0.0)
